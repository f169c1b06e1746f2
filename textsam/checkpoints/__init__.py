"""From a name, a file or a folder to a model, and back."""
