"""Words and crops to embeddings in CLIP's space."""
