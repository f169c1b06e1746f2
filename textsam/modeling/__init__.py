"""The SAM stack: tensors in, tensors out; nothing here knows of files, screens or suppliers."""
