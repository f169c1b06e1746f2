"""What is read from and written to disk: pictures, masks, data sets."""
