"""A user's vector, of the whole history, times a target's: not in the paper.

  q = sum_t x_t / sqrt(T), followed by the context
  u = W_u ReLU(4 W_h q + b_h) + b_u,    v = W_v x*,    logit += 3 u . v

Attention (1-3) sees of a history what resembles the target; what kind of user
it is, every event tells, and an MLP that must multiply the two learns slowly.
The user-to-item network of DMR (Lyu et al., Deep Match to Rank, AAAI 2020) has
such a product. A sum over sqrt(T), not a mean: a longer history tells more.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from eain_jax.layers.attention import scaled_history

# Embeddings start at .05 or so, hence u . v near 0, where it hardly moves in
# the first epoch; with these factors it does (synthetic world, one seed).
_INPUT_SCALE = 4.0
_OUTPUT_SCALE = 3.0


class UserMatch(nn.Module):
  """3 u . v of every candidate.

  Attributes:
    dim: Z, width of u and v; the hidden layer of u has 2 Z.
    compute_dtype: of the matrix products.
  """

  dim: int
  compute_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    history_NE: jax.Array,
    target_RCE: jax.Array,
    segment_N: jax.Array,
    context_RX: jax.Array,
  ) -> jax.Array:
    """[R, C], in float32 at least, from packed histories.

    Args:
      history_NE: [N, E].
      target_RCE: [R, C, E].
      segment_N: int32 [N], non-decreasing, as `pack_histories` makes it.
      context_RX: [R, X], the context's embeddings; X may be 0.
    """
    dense = lambda width, name, **kwargs: nn.Dense(
      width, dtype=self.compute_dtype, name=name, **kwargs
    )
    q_RE = scaled_history(history_NE, segment_N, target_RCE.shape[0])
    input_RY = _INPUT_SCALE * jnp.concatenate([q_RE, context_RX], axis=-1)
    hidden_RH = nn.relu(dense(2 * self.dim, 'hidden')(input_RY))
    u_RZ = dense(self.dim, 'user')(hidden_RH)
    v_RCZ = dense(self.dim, 'target', use_bias=False)(target_RCE)
    match_RC = jnp.einsum(
      'rz,rcz->rc',
      u_RZ,
      v_RCZ,
      preferred_element_type=jnp.promote_types(u_RZ.dtype, jnp.float32),
    )
    return _OUTPUT_SCALE * match_RC
