"""The multi-layer perceptron, its activations, and dropout.

Dropout draws its mask from (step key, layer, example, unit) by a hash, so an
example meets the same mask on one device or on eight, at any padding.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from eain_jax.layers.moving_average import share_kept

ACTIVATIONS = ('relu', 'dice', 'prelu', 'sigmoid')
STATISTICS_DECAY = 0.99


def _mix(x: jax.Array) -> jax.Array:
  """The murmur3 finalizer on uint32."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def dropout(
  x_BH: jax.Array, rate: float, key: jax.Array, row_B: jax.Array
) -> jax.Array:
  """Zeroes each unit with probability `rate` and scales the others up.

  Args:
    x_BH: [B, H].
    rate: probability in [0, 1).
    key: a PRNG key, of the step and the layer.
    row_B: int32 [B], each example's place in the global batch.

  Returns:
    [B, H], with expectation `x_BH`.
  """
  if rate == 0.0:
    return x_BH
  seed = jax.random.bits(key, (2,), jnp.uint32)
  row_B1 = _mix(row_B.astype(jnp.uint32) ^ seed[0])[:, None]
  unit_1H = jnp.arange(x_BH.shape[1], dtype=jnp.uint32)[None, :]
  bits_BH = _mix(row_B1 + unit_1H * jnp.uint32(0x9E3779B9) + seed[1])
  kept_BH = bits_BH >= jnp.uint32(rate * 2**32)
  scale = jnp.asarray(1.0 / (1.0 - rate), x_BH.dtype)
  return jnp.where(kept_BH, x_BH * scale, jnp.zeros((), x_BH.dtype))


def _gate(x_NH: jax.Array, alpha_H: jax.Array, z_NH: jax.Array) -> jax.Array:
  """p x + (1 - p) alpha x, p the sigmoid of z, the standardised x."""
  alpha_1H = alpha_H[None]
  p_NH = jax.nn.sigmoid(z_NH)
  return x_NH * (alpha_1H + (1 - alpha_1H) * p_NH)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _batch_dice(x_NH, alpha_H, share_N, epsilon, axis_name):
  """Dice over a batch: [N, H], and the mean and variance, each [H].

  Sums over rows are products with a vector: on a CPU they run at the speed of
  memory, where XLA's own reductions over the first axis do not.

  Args:
    x_NH: float32.
    alpha_H: float32.
    share_N: float32, what each row counts; over all devices they sum to one.
    epsilon: added to the variance.
    axis_name: mapped axis of the devices, or None.
  """
  add = lambda z: jax.lax.psum(z, axis_name) if axis_name else z
  mean_H = add(share_N @ x_NH)
  centred_NH = x_NH - mean_H[None]
  variance_H = add(share_N @ jnp.square(centred_NH))
  inverse_H = jax.lax.rsqrt(variance_H + epsilon)
  return _gate(x_NH, alpha_H, centred_NH * inverse_H[None]), mean_H, variance_H


@_batch_dice.defjvp
def _batch_dice_jvp(epsilon, axis_name, primals, tangents):
  (x_NH, alpha_H, share_N), (dx_NH, dalpha_H, _) = primals, tangents
  out = _batch_dice(x_NH, alpha_H, share_N, epsilon, axis_name)
  _, mean_H, variance_H = out
  add = lambda z: jax.lax.psum(z, axis_name) if axis_name else z
  inverse_H = jax.lax.rsqrt(variance_H + epsilon)
  z_NH = (x_NH - mean_H[None]) * inverse_H[None]
  p_NH = jax.nn.sigmoid(z_NH)
  dmean_H = add(share_N @ dx_NH)
  along_H = add(share_N @ (z_NH * dx_NH))
  # Of the standardised x: its mean moves, and its scale.
  dz_NH = inverse_H[None] * (dx_NH - dmean_H[None] - z_NH * along_H[None])
  alpha_1H = alpha_H[None]
  dout_NH = (
    dx_NH * (alpha_1H + (1 - alpha_1H) * p_NH)
    + x_NH * (1 - alpha_1H) * p_NH * (1 - p_NH) * dz_NH
    + dalpha_H[None] * (x_NH * (1 - p_NH))
  )
  return out, (dout_NH, dmean_H, 2 * along_H / inverse_H)


class Dice(nn.Module):
  """Dice (DIN, section 5.3): p x + (1 - p) alpha x, p = sigmoid((x - m) / s).

  m and s are the mean and the standard deviation of the batch's valid rows
  in training and their moving averages else, so a score never depends on its
  neighbours; see `share_kept`.

  Attributes:
    axis_name: mapped axis over which the statistics are taken.
    epsilon: added to the variance.
  """

  axis_name: str | None = None
  epsilon: float = 1e-8

  @nn.compact
  def __call__(self, x: jax.Array, valid: jax.Array, train: bool) -> jax.Array:
    """[..., H] from [..., H]; `valid`, bool [...], marks rows that count."""
    dim = (x.shape[-1],)
    alpha_H = self.param('alpha', nn.initializers.zeros, dim)
    mean = self.variable('stats', 'mean', jnp.zeros, dim)
    variance = self.variable('stats', 'variance', jnp.ones, dim)
    count = self.variable('stats', 'count', jnp.zeros, (), jnp.int32)
    x_NH = jnp.asarray(x, jnp.float32).reshape(-1, *dim)
    if train:
      weight_N = valid.reshape(-1).astype(jnp.float32)
      total = weight_N.sum()
      if self.axis_name:
        total = jax.lax.psum(total, self.axis_name)
      share_N = weight_N / jnp.maximum(total, 1.0)
      out_NH, mean_H, variance_H = _batch_dice(
        x_NH, alpha_H, share_N, self.epsilon, self.axis_name
      )
      if not self.is_initializing():
        keep = share_kept(STATISTICS_DECAY, count.value)
        # A batch without a valid row has no statistics.
        keep = jnp.where(total > 0, keep, 1.0)
        mean.value = keep * mean.value + (1 - keep) * mean_H
        variance.value = keep * variance.value + (1 - keep) * variance_H
        count.value += (total > 0).astype(jnp.int32)
    else:
      inverse_H = jax.lax.rsqrt(variance.value + self.epsilon)
      z_NH = (x_NH - mean.value[None]) * inverse_H[None]
      out_NH = _gate(x_NH, alpha_H, z_NH)
    return out_NH.reshape(x.shape).astype(x.dtype)


class PReLU(nn.Module):
  """max(x, 0) + alpha min(x, 0), alpha learned for each unit, from .25."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    alpha_H = self.param(
      'alpha', nn.initializers.constant(0.25), (x.shape[-1],)
    ).astype(x.dtype)
    alpha = jnp.expand_dims(alpha_H, tuple(range(x.ndim - 1)))
    return jnp.where(x > 0, x, alpha * x)


def activate(
  kind: str,
  x: jax.Array,
  valid: jax.Array,
  train: bool,
  axis_name: str | None,
  name: str,
) -> jax.Array:
  """One of ACTIVATIONS, called inside a compact module, which then owns it."""
  if kind == 'relu':
    return nn.relu(x)
  if kind == 'sigmoid':
    return nn.sigmoid(x)
  if kind == 'prelu':
    return PReLU(name=name)(x)
  if kind == 'dice':
    return Dice(axis_name, name=name)(x, valid, train)
  raise ValueError(f'activation {kind!r} is not one of {ACTIVATIONS}')


class DenseOfParts(nn.Module):
  """A dense layer over inputs that stand side by side but in arrays apart.

  Its kernel is that of the concatenation; each part meets its own rows of it,
  so the concatenation is never written, nor its gradient cut up again.

  Attributes:
    features: H, width of the output.
    compute_dtype: of the matrix products.
  """

  features: int
  compute_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, parts: Sequence[jax.Array]) -> jax.Array:
    """[B, H] from [B, X_1], [B, X_2], ..."""
    ends = np.cumsum([part.shape[1] for part in parts])
    kernel_XH = self.param(
      'kernel',
      nn.initializers.lecun_normal(),
      (int(ends[-1]), self.features),
    ).astype(self.compute_dtype)
    bias_H = self.param('bias', nn.initializers.zeros, (self.features,))
    out_BH = bias_H.astype(self.compute_dtype)[None]
    kernels = jnp.split(kernel_XH, ends[:-1])
    for part_BX, own_XH in zip(parts, kernels, strict=True):
      out_BH = out_BH + part_BX.astype(self.compute_dtype) @ own_XH
    return out_BH


class MLP(nn.Module):
  """Dense layers with activation and dropout, then one logit.

  Attributes:
    hidden_dims: widths of the hidden layers.
    activation: one of ACTIVATIONS.
    dropout_rate: probability that a hidden unit is zeroed in training.
    compute_dtype: of the matrix products.
    axis_name: mapped axis over which Dice takes its statistics.
  """

  hidden_dims: Sequence[int]
  activation: str = 'relu'
  dropout_rate: float = 0.0
  compute_dtype: jax.typing.DTypeLike = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self,
    inputs: jax.Array | Sequence[jax.Array],
    row_B: jax.Array,
    valid_B: jax.Array,
    train: bool = False,
  ) -> jax.Array:
    """float32 logits [B] from [B, X].

    Args:
      inputs: [B, X], or several arrays [B, X_1], [B, X_2], ... that stand for
        their concatenation.
      row_B: as in `dropout`.
      valid_B: bool [B], the examples that Dice's statistics count.
      train: drop units, and take Dice's statistics from this batch.
    """
    parts = inputs if isinstance(inputs, Sequence) else [inputs]
    for number, dim in enumerate(self.hidden_dims):
      x_BH = DenseOfParts(dim, self.compute_dtype, name=f'dense_{number}')(
        parts
      )
      x_BH = activate(
        self.activation,
        x_BH,
        valid_B,
        train,
        self.axis_name,
        name=f'activation_{number}',
      )
      if train and self.dropout_rate:
        x_BH = dropout(x_BH, self.dropout_rate, self.make_rng('dropout'), row_B)
      parts = [x_BH]
    logit_B1 = DenseOfParts(1, self.compute_dtype, name='logit')(parts)
    return logit_B1[:, 0].astype(jnp.float32)
