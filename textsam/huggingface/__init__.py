"""TextSAM as classes of transformers: processor, pipeline, and ranking on other models."""
