"""Training code of TextSAM."""
