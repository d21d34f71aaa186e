"""The mathematics, one layer a file: pure functions under thin Linen modules.

Axis letters, in names and einsums alike:

  R  requests of a batch         T  history events of one example, padded
  C  candidates of a request     N  history events of a batch, packed
  B  examples, B = R * C         A  item features (the item, its attributes)
  F  fields                      E  an event's embedding, E = A * D
  P  field pairs, F(F - 1)/2     D  a field's embedding
  H  hidden units                V  rows of an embedding table
  U  distinct items of a batch   W  width of a table, D or D + 1
  K  context features           G  width of f^(l), (10)
  Z  width of a user's vector

Histories are packed: the events of all requests stand one after another, and
`segment_N` tells the request of each; a segment of R or more is padding.
"""

from eain_jax.layers.attention import (
  ActivationUnit,
  AdditiveAttention,
  additive_score,
  pack_histories,
  pool_history,
  segment_softmax,
)
from eain_jax.layers.embedding import embed, embed_mean
from eain_jax.layers.mask_block import MaskBlock, masked_interactions
from eain_jax.layers.mlp import MLP, Dice, PReLU
from eain_jax.layers.position_cross import (
  PositionAwareInteraction,
  outer_cross,
  sinusoidal_encoding,
)
from eain_jax.layers.squeeze_excitation import (
  SqueezeExcitation,
  excite,
  squeeze,
)
from eain_jax.layers.user_match import UserMatch

__all__ = [
  'MLP',
  'ActivationUnit',
  'AdditiveAttention',
  'Dice',
  'MaskBlock',
  'PReLU',
  'PositionAwareInteraction',
  'SqueezeExcitation',
  'UserMatch',
  'additive_score',
  'embed',
  'embed_mean',
  'excite',
  'masked_interactions',
  'outer_cross',
  'pack_histories',
  'pool_history',
  'segment_softmax',
  'sinusoidal_encoding',
  'squeeze',
]
