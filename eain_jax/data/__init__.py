"""Raw files to batches: Polars and numpy; jax is never imported here."""
