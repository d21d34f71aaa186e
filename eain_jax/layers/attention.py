"""Target attention over a user's history, equations (1) to (3).

  e_t = v^T tanh(W_1 x_t + W_2 x*)          (2), additive, as the paper has it
  alpha_t = exp(e_t) / sum_k exp(e_k)       (1), over the history's own events
  h_u = sum_t alpha_t x_t                   (3)

`ActivationUnit` is the unit of DIN's own paper (arXiv 1706.06978), an MLP over
[q, k, q - k, q * k]. An empty history gives h_u = 0.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from eain_jax.layers.mlp import activate


def pack_histories(
  history_BTE: jax.Array, mask_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Padded histories in the packed form that the layers take.

  Args:
    history_BTE: [B, T, E], any order of padding.
    mask_BT: bool [B, T], True for real events.

  Returns:
    history_NE [B * T, E] and segment_N int32 [B * T], where padding has
    segment B.
  """
  batch, length, width = history_BTE.shape
  segment_BT = jnp.where(mask_BT, jnp.arange(batch)[:, None], batch)
  return (
    history_BTE.reshape(batch * length, width),
    segment_BT.reshape(batch * length).astype(jnp.int32),
  )


def segment_softmax(
  score_NC: jax.Array, segment_N: jax.Array, num_segments: int
) -> jax.Array:
  """Equation (1) within each segment, in float32 at least; padding weighs 0.

  Args:
    score_NC: [N, C].
    segment_N: int32 [N]; `num_segments` or more is padding.
    num_segments: R.

  Returns:
    [N, C], float32 (float64 from float64); sums to 1 over each segment that
    has an event.
  """
  score_NC = score_NC.astype(jnp.promote_types(score_NC.dtype, jnp.float32))
  valid_N1 = (segment_N < num_segments)[:, None]
  safe_N = jnp.minimum(segment_N, num_segments - 1)
  score_NC = jnp.where(valid_N1, score_NC, -jnp.inf)
  # The maximum only keeps exp in range; the softmax does not depend on it.
  highest_RC = jax.ops.segment_max(
    jax.lax.stop_gradient(score_NC), safe_N, num_segments
  )
  highest_RC = jnp.where(jnp.isfinite(highest_RC), highest_RC, 0.0)
  weight_NC = jnp.exp(score_NC - highest_RC[safe_N])
  total_RC = jax.ops.segment_sum(weight_NC, safe_N, num_segments)
  return weight_NC / jnp.where(total_RC > 0, total_RC, 1.0)[safe_N]


def pool_history(
  weight_NC: jax.Array,
  history_NE: jax.Array,
  segment_N: jax.Array,
  num_segments: int,
) -> jax.Array:
  """Equation (3), h_u of every candidate: [R, C, E]; 0 for an empty history."""
  valid_N1 = (segment_N < num_segments)[:, None]
  weight_NC = jnp.where(valid_N1, weight_NC, 0.0).astype(history_NE.dtype)
  return jax.ops.segment_sum(
    weight_NC[:, :, None] * history_NE[:, None, :],
    jnp.minimum(segment_N, num_segments - 1),
    num_segments,
  )


def mean_history(
  history_NE: jax.Array, segment_N: jax.Array, num_segments: int
) -> jax.Array:
  """The plain mean of each history, [R, E]; 0 for an empty one."""
  valid_N1 = (segment_N < num_segments)[:, None].astype(history_NE.dtype)
  safe_N = jnp.minimum(segment_N, num_segments - 1)
  total_RE = jax.ops.segment_sum(history_NE * valid_N1, safe_N, num_segments)
  count_R1 = jax.ops.segment_sum(valid_N1, safe_N, num_segments)
  return total_RE / jnp.maximum(count_R1, 1)


def additive_score(
  history_NE: jax.Array,
  target_RCE: jax.Array,
  segment_N: jax.Array,
  w1_EH: jax.Array,
  w2_EH: jax.Array,
  v_H: jax.Array,
) -> jax.Array:
  """Equation (2): [N, C], v^T tanh(W_1 x_t + W_2 x*)."""
  safe_N = jnp.minimum(segment_N, target_RCE.shape[0] - 1)
  query_RCH = target_RCE @ w2_EH
  hidden_NCH = jnp.tanh((history_NE @ w1_EH)[:, None, :] + query_RCH[safe_N])
  return hidden_NCH @ v_H


class AdditiveAttention(nn.Module):
  """Equations (1) to (3): h_u of every candidate.

  Attributes:
    hidden_dim: H, rows of W_1 and W_2.
    use_product: adds a W_3 (x_t * x*) term inside the tanh of (2). Not in the
      paper: a sum of projections alone meets the target only through tanh.
    compute_dtype: of the matrix products.
  """

  hidden_dim: int
  use_product: bool = False
  compute_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, history_NE: jax.Array, target_RCE: jax.Array, segment_N: jax.Array
  ) -> jax.Array:
    """[R, C, E] from packed histories [N, E] and candidates [R, C, E].

    Sows 'attention_weight' [N, C] into 'intermediates'.
    """
    width, dtype = history_NE.shape[-1], self.compute_dtype
    init = nn.initializers.glorot_uniform()
    shape = (width, self.hidden_dim)
    w1_EH = self.param('w1', init, shape).astype(dtype)
    w2_EH = self.param('w2', init, shape).astype(dtype)
    v_H = self.param('v', nn.initializers.normal(0.1), shape[1:]).astype(dtype)
    num_requests = target_RCE.shape[0]
    if self.use_product:
      w3_EH = self.param('w3', init, shape).astype(dtype)
      safe_N = jnp.minimum(segment_N, num_requests - 1)
      query_RCH = target_RCE @ w2_EH
      product_NCE = history_NE[:, None, :] * target_RCE[safe_N]
      score_NC = (
        jnp.tanh(
          (history_NE @ w1_EH)[:, None, :]
          + query_RCH[safe_N]
          + product_NCE @ w3_EH
        )
        @ v_H
      )
    else:
      score_NC = additive_score(
        history_NE, target_RCE, segment_N, w1_EH, w2_EH, v_H
      )
    weight_NC = segment_softmax(score_NC, segment_N, num_requests)
    self.sow('intermediates', 'attention_weight', weight_NC)
    return pool_history(weight_NC, history_NE, segment_N, num_requests)


def activation_unit_hidden(
  history_NE: jax.Array,
  target_RCE: jax.Array,
  segment_N: jax.Array,
  kernel_4EH: jax.Array,
) -> jax.Array:
  """The first layer of DIN's unit, W [q, k, q - k, q * k], factored.

  W = [W_q; W_k; W_d; W_p], so W [...] = (W_q + W_d) q + (W_k - W_d) k +
  W_p (q * k): the first two are computed once a candidate and once an event,
  and the concatenation [N, C, 4E] is never made.

  Returns:
    [N, C, H].
  """
  w_q, w_k, w_d, w_p = jnp.split(kernel_4EH, 4)
  safe_N = jnp.minimum(segment_N, target_RCE.shape[0] - 1)
  query_RCH = target_RCE @ (w_q + w_d)
  key_NH = history_NE @ (w_k - w_d)
  product_NCE = history_NE[:, None, :] * target_RCE[safe_N]
  return key_NH[:, None, :] + query_RCH[safe_N] + product_NCE @ w_p


class ActivationUnit(nn.Module):
  """DIN's attention: an MLP scores each (event, candidate) pair.

  Attributes:
    hidden_dims: widths of the MLP before its single output.
    activation: of the hidden layers: dice, prelu, sigmoid or relu.
    use_softmax: normalise the scores over the history as in (1); DIN's paper
      leaves them as they are, to keep the intensity of an interest.
    compute_dtype: of the matrix products.
    axis_name: mapped axis over which Dice takes its statistics.
  """

  hidden_dims: Sequence[int]
  activation: str = 'dice'
  use_softmax: bool = True
  compute_dtype: jax.typing.DTypeLike = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self,
    history_NE: jax.Array,
    target_RCE: jax.Array,
    segment_N: jax.Array,
    train: bool = False,
  ) -> jax.Array:
    """[R, C, E] from packed histories [N, E] and candidates [R, C, E].

    Sows 'attention_weight' [N, C] into 'intermediates'.
    """
    width, dtype = history_NE.shape[-1], self.compute_dtype
    num_requests = target_RCE.shape[0]
    valid_N1 = (segment_N < num_requests)[:, None]
    valid_NC = jnp.broadcast_to(valid_N1, (len(segment_N), target_RCE.shape[1]))
    kernel_4EH = self.param(
      'kernel',
      nn.initializers.glorot_uniform(),
      (4 * width, self.hidden_dims[0]),
    ).astype(dtype)
    bias_H = self.param(
      'bias', nn.initializers.zeros, (self.hidden_dims[0],)
    ).astype(dtype)
    hidden_NCH = bias_H[None, None] + activation_unit_hidden(
      history_NE, target_RCE, segment_N, kernel_4EH
    )
    for number, dim in enumerate([*self.hidden_dims[1:], 1]):
      hidden_NCH = activate(
        self.activation,
        hidden_NCH,
        valid_NC,
        train,
        self.axis_name,
        name=f'activation_{number}',
      )
      hidden_NCH = nn.Dense(dim, dtype=dtype, name=f'dense_{number + 1}')(
        hidden_NCH
      )
    score_NC = hidden_NCH[..., 0]
    if self.use_softmax:
      weight_NC = segment_softmax(score_NC, segment_N, num_requests)
    else:
      weight_NC = score_NC
    self.sow('intermediates', 'attention_weight', weight_NC)
    return pool_history(weight_NC, history_NE, segment_N, num_requests)
