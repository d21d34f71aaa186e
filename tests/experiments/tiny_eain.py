"""Flags of an EAIN that is quick to compile."""

TINY_EAIN = (
  '--embedding_dim=4',
  '--mlp=8',
  '--attention_dim=4',
  '--mask_hidden_dim=8',
  '--paim_dim=4',
  '--position_dim=4',
)
