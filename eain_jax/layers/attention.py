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

from eain_jax.data.features import NUM_DAY_BUCKETS
from eain_jax.layers.mlp import activate

# Events further back share the last rank.
NUM_RANKS = 64
# Candidates that are weighed one by one: of thousands, as of a catalogue, the
# program would take minutes to compile.
MAX_UNROLLED = 256


def pack_histories(
  history_BTE: jax.Array, mask_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Padded histories in the packed form that the layers take.

  Args:
    history_BTE: [B, T, E], any order of padding.
    mask_BT: bool [B, T], True for real events.

  Returns:
    history_NE [B * T, E] and segment_N int32 [B * T], non-decreasing; padding
    has segment B and comes last.
  """
  batch, length, width = history_BTE.shape
  segment_BT = jnp.where(mask_BT, jnp.arange(batch)[:, None], batch)
  segment_N = segment_BT.reshape(batch * length).astype(jnp.int32)
  order_N = jnp.argsort(segment_N, stable=True)
  history_NE = jnp.asarray(history_BTE).reshape(batch * length, width)
  return history_NE[order_N], segment_N[order_N]


def _of_request(x_RX: jax.Array, segment_N: jax.Array) -> jax.Array:
  """[N, ...]: each event's row of `x_RX`; padding takes the last one's."""
  return (
    jnp.asarray(x_RX).at[segment_N].get(mode='clip', indices_are_sorted=True)
  )


def _sum_of_request(
  x_NX: jax.Array, segment_N: jax.Array, num_segments: int
) -> jax.Array:
  """[R, ...]: sums over each request's events; padding is dropped."""
  return jax.ops.segment_sum(
    x_NX, segment_N, num_segments, indices_are_sorted=True
  )


def rank_from_end(segment_N: jax.Array, num_segments: int) -> jax.Array:
  """int32 [N]: 0 for the newest event of a request, 1 for the one before it.

  `segment_N` must be non-decreasing; what padding has means nothing.
  """
  place_N = jnp.arange(segment_N.shape[0], dtype=jnp.int32)
  newest_R = jax.ops.segment_max(
    place_N, segment_N, num_segments, indices_are_sorted=True
  )
  return jnp.maximum(_of_request(newest_R, segment_N) - place_N, 0)


def segment_softmax(
  score_NC: jax.Array, segment_N: jax.Array, num_segments: int
) -> jax.Array:
  """Equation (1) within each segment, in float32 at least; padding weighs 0.

  Args:
    score_NC: [N, C].
    segment_N: int32 [N], non-decreasing; `num_segments` or more is padding.
    num_segments: R.

  Returns:
    [N, C], float32 (float64 from float64); sums to 1 over each segment that
    has an event.
  """
  score_NC = score_NC.astype(jnp.promote_types(score_NC.dtype, jnp.float32))
  # The maximum only keeps exp in range; the softmax does not depend on it.
  highest_RC = jax.ops.segment_max(
    jax.lax.stop_gradient(score_NC),
    segment_N,
    num_segments,
    indices_are_sorted=True,
  )
  valid_N1 = (segment_N < num_segments)[:, None]
  shifted_NC = jnp.where(
    valid_N1, score_NC - _of_request(highest_RC, segment_N), -jnp.inf
  )
  weight_NC = jnp.exp(shifted_NC)
  total_RC = _sum_of_request(weight_NC, segment_N, num_segments)
  inverse_RC = 1.0 / jnp.where(total_RC > 0, total_RC, 1.0)
  return weight_NC * _of_request(inverse_RC, segment_N)


def pool_history(
  weight_NC: jax.Array,
  history_NE: jax.Array,
  segment_N: jax.Array,
  num_segments: int,
) -> jax.Array:
  """Equation (3), h_u of every candidate: [R, C, E]; 0 for an empty history.

  `segment_N` must be non-decreasing.
  """
  num_candidates, width = weight_NC.shape[1], history_NE.shape[1]
  weight_NC = weight_NC.astype(history_NE.dtype)
  # [N, C * E]: one axis less, or XLA transposes to and fro on a CPU.
  if num_candidates <= MAX_UNROLLED:
    weighted_NX = jnp.concatenate(
      [weight_NC[:, c, None] * history_NE for c in range(num_candidates)],
      axis=1,
    )
  else:
    weighted_NCE = weight_NC[:, :, None] * history_NE[:, None, :]
    weighted_NX = weighted_NCE.reshape(history_NE.shape[0], -1)
  pooled_RX = _sum_of_request(weighted_NX, segment_N, num_segments)
  return pooled_RX.reshape(num_segments, num_candidates, width)


def _total_and_count(
  history_NE: jax.Array, segment_N: jax.Array, num_segments: int
) -> tuple[jax.Array, jax.Array]:
  """The sum of each history, [R, E], and its length, [R, 1], at least 1.

  In float32 at least: in bfloat16 a count of ones would end at 256.
  """
  dtype = jnp.promote_types(history_NE.dtype, jnp.float32)
  total_RE = _sum_of_request(history_NE.astype(dtype), segment_N, num_segments)
  ones_N1 = jnp.ones((segment_N.shape[0], 1), dtype)
  count_R1 = _sum_of_request(ones_N1, segment_N, num_segments)
  return total_RE, jnp.maximum(count_R1, 1)


def mean_history(
  history_NE: jax.Array, segment_N: jax.Array, num_segments: int
) -> jax.Array:
  """The plain mean of each history, [R, E]; 0 for an empty one.

  `segment_N` must be non-decreasing.
  """
  total_RE, count_R1 = _total_and_count(history_NE, segment_N, num_segments)
  return (total_RE / count_R1).astype(history_NE.dtype)


def scaled_history(
  history_NE: jax.Array, segment_N: jax.Array, num_segments: int
) -> jax.Array:
  """As `mean_history`, but the sum over the root of the length: [R, E]."""
  total_RE, count_R1 = _total_and_count(history_NE, segment_N, num_segments)
  return (total_RE / jnp.sqrt(count_R1)).astype(history_NE.dtype)


def pair_projection(
  history_NE: jax.Array,
  target_RCE: jax.Array,
  segment_N: jax.Array,
  key_EH: jax.Array,
  query_EH: jax.Array,
  product_EH: jax.Array | None = None,
) -> jax.Array:
  """K x_t + Q x* + P (x_t * x*) of every (event, candidate) pair.

  The first layer of both attentions, factored: Q x* is computed once a
  candidate and K x_t once an event, where C is more than one; with a single
  candidate one matrix product over [x_t, x_t * x*] is faster than two.

  Args:
    history_NE: [N, E], packed events.
    target_RCE: [R, C, E].
    segment_N: int32 [N], non-decreasing; R or more is padding.
    key_EH: K, transposed.
    query_EH: Q, transposed.
    product_EH: P, transposed; None leaves the term out.

  Returns:
    [N * C, H]: the pairs of an event stand together.
  """
  num_requests, num_candidates, width = target_RCE.shape
  num_events, hidden = history_NE.shape[0], key_EH.shape[1]
  query_RX = (target_RCE.reshape(-1, width) @ query_EH).reshape(
    num_requests, num_candidates * hidden
  )
  query_XH = _of_request(query_RX, segment_N).reshape(-1, hidden)
  target_RX = target_RCE.reshape(num_requests, num_candidates * width)
  if num_candidates == 1:
    if product_EH is None:
      return query_XH + history_NE @ key_EH
    product_NE = history_NE * _of_request(target_RX, segment_N)
    both_N2E = jnp.concatenate([history_NE, product_NE], axis=1)
    return query_XH + both_N2E @ jnp.concatenate([key_EH, product_EH])
  key_NH = history_NE @ key_EH
  hidden_NX = query_XH.reshape(num_events, -1) + jnp.tile(
    key_NH, (1, num_candidates)
  )
  hidden_XH = hidden_NX.reshape(-1, hidden)
  if product_EH is None:
    return hidden_XH
  product_NX = jnp.tile(history_NE, (1, num_candidates)) * _of_request(
    target_RX, segment_N
  )
  return hidden_XH + product_NX.reshape(-1, width) @ product_EH


class AdditiveAttention(nn.Module):
  """Equations (1) to (3): h_u of every candidate.

  Attributes:
    hidden_dim: H, rows of W_1 and W_2.
    use_product: adds a W_3 (x_t * x*) term inside the tanh of (2). Not in the
      paper: a sum of projections alone meets the target only through tanh.
    compute_dtype: of the matrix products.
    use_softmax: (1); without it alpha_t is e_t of (2), which may be negative,
      and h_u grows with the history.
    recency: what W_1 x_t + W_2 x* is told of how far back x_t lies, as learned
      vectors b [H] inside the tanh of (2); not in the paper, whose scores do
      not know the order of a history. 'rank': b of the place from the newest
      event. 'age': b of the days to the target, in buckets. 'rank_and_age':
      both. 'none'.
  """

  hidden_dim: int
  use_product: bool = False
  compute_dtype: jax.typing.DTypeLike = jnp.float32
  use_softmax: bool = True
  recency: str = 'none'

  @nn.compact
  def __call__(
    self,
    history_NE: jax.Array,
    target_RCE: jax.Array,
    segment_N: jax.Array,
    age_N: jax.Array | None = None,
  ) -> jax.Array:
    """[R, C, E] from packed histories [N, E] and candidates [R, C, E].

    Sows 'attention_weight' [N, C] into 'intermediates'.

    Args:
      history_NE: [N, E].
      target_RCE: [R, C, E].
      segment_N: int32 [N], non-decreasing, as `pack_histories` makes it: XLA is
        promised so.
      age_N: int32 [N] in [0, NUM_DAY_BUCKETS), where `recency` names it.
    """
    width, dtype = history_NE.shape[-1], self.compute_dtype
    init = nn.initializers.glorot_uniform()
    shape = (width, self.hidden_dim)
    w1_EH = self.param('w1', init, shape).astype(dtype)
    w2_EH = self.param('w2', init, shape).astype(dtype)
    v_H = self.param('v', nn.initializers.normal(0.1), shape[1:]).astype(dtype)
    w3_EH = None
    if self.use_product:
      w3_EH = self.param('w3', init, shape).astype(dtype)
    num_requests = target_RCE.shape[0]
    bias_NH = None
    for name, size, index_N in (
      ('rank', NUM_RANKS, rank_from_end(segment_N, num_requests)),
      ('age', NUM_DAY_BUCKETS, age_N),
    ):
      if name not in self.recency:
        continue
      if index_N is None:
        raise ValueError(f'recency={self.recency} needs age_N')
      bias_VH = self.param(
        name, nn.initializers.normal(0.05), (size, *shape[1:])
      )
      own_NH = bias_VH.astype(dtype)[jnp.minimum(index_N, size - 1)]
      bias_NH = own_NH if bias_NH is None else bias_NH + own_NH
    weight_NC = additive_score(
      history_NE, target_RCE, segment_N, w1_EH, w2_EH, v_H, w3_EH, bias_NH
    )
    if self.use_softmax:
      weight_NC = segment_softmax(weight_NC, segment_N, num_requests)
    self.sow('intermediates', 'attention_weight', weight_NC)
    return pool_history(weight_NC, history_NE, segment_N, num_requests)


def additive_score(
  history_NE: jax.Array,
  target_RCE: jax.Array,
  segment_N: jax.Array,
  w1_EH: jax.Array,
  w2_EH: jax.Array,
  v_H: jax.Array,
  w3_EH: jax.Array | None = None,
  bias_NH: jax.Array | None = None,
) -> jax.Array:
  """Equation (2): [N, C], v^T tanh(W_1 x_t + W_2 x*).

  Inside the tanh `w3_EH` adds W_3 (x_t * x*), and `bias_NH` what it holds.
  """
  hidden_XH = pair_projection(
    history_NE, target_RCE, segment_N, w1_EH, w2_EH, w3_EH
  )
  if bias_NH is not None:
    hidden_XH += jnp.repeat(bias_NH, target_RCE.shape[1], axis=0)
  return (jnp.tanh(hidden_XH) @ v_H).reshape(history_NE.shape[0], -1)


def activation_unit_hidden(
  history_NE: jax.Array,
  target_RCE: jax.Array,
  segment_N: jax.Array,
  kernel_4EH: jax.Array,
) -> jax.Array:
  """The first layer of DIN's unit, W [q, k, q - k, q * k], factored.

  W = [W_q; W_k; W_d; W_p], so W [...] = (W_q + W_d) q + (W_k - W_d) k +
  W_p (q * k), and the concatenation [N, C, 4E] is never made.

  Returns:
    [N * C, H], as `pair_projection`.
  """
  w_q, w_k, w_d, w_p = jnp.split(kernel_4EH, 4)
  return pair_projection(
    history_NE, target_RCE, segment_N, w_k - w_d, w_q + w_d, w_p
  )


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
    valid_RC: jax.Array | None = None,
  ) -> jax.Array:
    """[R, C, E] from packed histories [N, E] and candidates [R, C, E].

    `segment_N` must be non-decreasing, as `pack_histories` makes it: XLA is
    promised so. Candidates that are not `valid_RC`, bool, do not count in the
    statistics of Dice. Sows 'attention_weight' [N, C] into 'intermediates'.
    """
    width, dtype = history_NE.shape[-1], self.compute_dtype
    num_requests, num_candidates = target_RCE.shape[:2]
    valid_NC = (segment_N < num_requests)[:, None]
    if valid_RC is not None:
      valid_NC &= _of_request(valid_RC, segment_N)
    valid_X = jnp.broadcast_to(
      valid_NC, (segment_N.shape[0], num_candidates)
    ).reshape(-1)
    kernel_4EH = self.param(
      'kernel',
      nn.initializers.glorot_uniform(),
      (4 * width, self.hidden_dims[0]),
    ).astype(dtype)
    bias_H = self.param(
      'bias', nn.initializers.zeros, (self.hidden_dims[0],)
    ).astype(dtype)
    hidden_XH = bias_H[None] + activation_unit_hidden(
      history_NE, target_RCE, segment_N, kernel_4EH
    )
    for number, dim in enumerate([*self.hidden_dims[1:], 1]):
      hidden_XH = activate(
        self.activation,
        hidden_XH,
        valid_X,
        train,
        self.axis_name,
        name=f'activation_{number}',
      )
      hidden_XH = nn.Dense(dim, dtype=dtype, name=f'dense_{number + 1}')(
        hidden_XH
      )
    weight_NC = hidden_XH.reshape(history_NE.shape[0], num_candidates)
    if self.use_softmax:
      weight_NC = segment_softmax(weight_NC, segment_N, num_requests)
    self.sow('intermediates', 'attention_weight', weight_NC)
    return pool_history(weight_NC, history_NE, segment_N, num_requests)
