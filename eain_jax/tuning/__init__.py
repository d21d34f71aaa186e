"""Search of settings on the validation part, with one budget for all models."""
