"""Scores on COCO-format data."""
