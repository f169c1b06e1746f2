"""From checked prompts and an encoded photo to detections."""
