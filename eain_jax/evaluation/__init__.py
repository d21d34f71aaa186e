"""What a model is worth: exact metrics on the host."""
