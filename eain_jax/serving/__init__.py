"""A trained model at work: raw ids in, scores out."""
