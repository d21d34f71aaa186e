"""SE-Net on fields, equations (5) and (6).

  s = sigmoid(FC_2(ReLU(FC_1(mean over D of U))))      (5)
  U~ = s * U                                           (6)

The fields are the channels: the mean over D squeezes each to one number, and s
gates fields. The sigmoid cannot switch a field off for good, as FiBiNET's ReLU
gate can.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


def squeeze(fields_BFD: jax.Array) -> jax.Array:
  """GlobalAvgPool of (5): [B, F], the mean of each field."""
  return fields_BFD.mean(axis=-1)


def excite(fields_BFD: jax.Array, gate_BF: jax.Array) -> jax.Array:
  """Equation (6): [B, F, D], each field times its gate."""
  return fields_BFD * gate_BF[:, :, None]


class SqueezeExcitation(nn.Module):
  """Equations (5) and (6) over fields.

  Attributes:
    reduction: FC_1 has F / reduction units, at least one.
    compute_dtype: of the matrix products.
  """

  reduction: int = 3
  compute_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, fields_BFD: jax.Array) -> jax.Array:
    """[B, F, D] from [B, F, D]; sows 'gate' [B, F] into 'intermediates'."""
    num_fields = fields_BFD.shape[1]
    hidden_dim = max(1, num_fields // self.reduction)
    hidden_BH = nn.Dense(hidden_dim, dtype=self.compute_dtype, name='fc1')(
      squeeze(fields_BFD)
    )
    gate_BF = nn.sigmoid(
      nn.Dense(num_fields, dtype=self.compute_dtype, name='fc2')(
        nn.relu(hidden_BH)
      )
    )
    self.sow('intermediates', 'gate', gate_BF)
    return excite(fields_BFD, gate_BF)
