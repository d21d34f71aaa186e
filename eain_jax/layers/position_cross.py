"""PAIM: position encoding and high-order crosses, equations (7) to (12).

  p_t[i] = sin(t / 10000^(2i/C)), i even; cos(t / 10000^(2i/C)), i odd   (8, 9)
  f^(l) = phi(W^(l) (f^(l-1) outer f^(l-1)))                              (10)
  h_interaction = f^(L)                                                   (11)
  h_final = h_interaction concatenated with p_t                           (12)

The exponent is read as printed: i is the dimension index itself, 0 to C - 1,
not the index of a sine and cosine pair as in the Transformer.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def sinusoidal_encoding(position_B: jax.Array, dim: int) -> jax.Array:
  """Equations (8) and (9): float32 [B, C] of positions t [B], C = `dim`."""
  i_C = jnp.arange(dim)
  # In float32 the exponent is applied as exp(-log), which stays in range.
  frequency_C = jnp.exp(-jnp.log(10_000.0) * (2.0 * i_C / dim))
  angle_BC = position_B.astype(jnp.float32)[:, None] * frequency_C[None, :]
  even_1C = (i_C % 2 == 0)[None, :]
  return jnp.where(even_1C, jnp.sin(angle_BC), jnp.cos(angle_BC))


def _triangle(f_BG: jax.Array) -> jax.Array:
  """[B, G(G + 1)/2]: f_j f_k for every j <= k, row by row."""
  rows = [f_BG[:, g : g + 1] * f_BG[:, g:] for g in range(f_BG.shape[1])]
  return jnp.concatenate(rows, axis=1)


@jax.custom_jvp
def _quadratic_form(f_BG: jax.Array, kernel_HX: jax.Array) -> jax.Array:
  """[B, H]: sum over j <= k of W_hjk f_j f_k, a row of the kernel an h."""
  return _triangle(f_BG) @ kernel_HX.T


@_quadratic_form.defjvp
def _quadratic_form_jvp(primals, tangents):
  (f_BG, kernel_HX), (df_BG, dkernel_HX) = primals, tangents
  batch, width = f_BG.shape
  triangle_BX = _triangle(f_BG)
  # With W symmetric d(f^T W f) is 2 df^T W f: one term, where autodiff has two.
  j_X, k_X = np.triu_indices(width)
  place = np.zeros((width, width), np.int32)
  place[j_X, k_X] = place[k_X, j_X] = np.arange(len(j_X))
  half_1Y = np.where(np.eye(width, dtype=bool), 1.0, 0.5).reshape(1, -1)
  symmetric_HY = kernel_HX[:, place.reshape(-1)] * half_1Y.astype(
    kernel_HX.dtype
  )
  along_BY = (df_BG[:, :, None] * f_BG[:, None, :]).reshape(batch, -1)
  out_BH = triangle_BX @ kernel_HX.T
  return out_BH, triangle_BX @ dkernel_HX.T + 2 * (along_BY @ symmetric_HY.T)


def outer_cross(f_BG: jax.Array, kernel_HGG: jax.Array) -> jax.Array:
  """The linear part of (10), W (f outer f): [B, H].

  out_h = sum_jk W_hjk f_j f_k sees only W_hjk + W_hkj, so half of the outer
  product is enough: the operand of one matrix product. The bilinear form
  f^T (W_h f), whose temporary is twice that size, takes twice as long.
  """
  j_X, k_X = np.triu_indices(f_BG.shape[1])
  both_HGG = kernel_HGG + kernel_HGG.swapaxes(1, 2)
  share_X = np.where(j_X == k_X, 0.5, 1.0).astype(both_HGG.dtype)
  return _quadratic_form(f_BG, both_HGG[:, j_X, k_X] * share_X[None])


class PositionAwareInteraction(nn.Module):
  """Equations (7) to (12).

  Attributes:
    num_layers: L.
    interaction_dim: width of f^(0), to which the input is projected first, and
      of every f^(l); 0: f^(0) is the input itself, as printed.
    position: sinusoidal, learned, or none.
    position_dim: C of (8-9), the width of p_t.
    max_position: last learned position; later ones share it.
    use_norm: layer norm after each phi: products of products grow or vanish.
    compute_dtype: of the matrix products.
  """

  num_layers: int = 2
  interaction_dim: int = 0
  position: str = 'sinusoidal'
  position_dim: int = 16
  max_position: int = 512
  use_norm: bool = False
  compute_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, input_BG: jax.Array, position_B: jax.Array) -> jax.Array:
    """h_final, [B, H + C], from h_u [B, G] and positions t, int32 [B]."""
    f_BG = input_BG
    if self.interaction_dim:
      f_BG = nn.Dense(
        self.interaction_dim, dtype=self.compute_dtype, name='projection'
      )(f_BG)
    for layer in range(self.num_layers):
      width = f_BG.shape[-1]
      kernel_HGG = self.param(
        f'kernel_{layer}',
        nn.initializers.variance_scaling(
          1.0, 'fan_in', 'normal', in_axis=(1, 2), out_axis=0
        ),
        (width, width, width),
      )
      f_BG = nn.relu(outer_cross(f_BG, kernel_HGG.astype(self.compute_dtype)))
      if self.use_norm:
        f_BG = nn.LayerNorm(dtype=self.compute_dtype, name=f'norm_{layer}')(
          f_BG
        )
    if self.position == 'none':
      return f_BG
    if self.position == 'sinusoidal':
      p_BC = sinusoidal_encoding(position_B, self.position_dim)
    else:
      table_VC = self.param(
        'position',
        nn.initializers.normal(0.05),
        (self.max_position + 1, self.position_dim),
      )
      p_BC = table_VC[jnp.minimum(position_B, self.max_position)]
    return jnp.concatenate([f_BG, p_BC.astype(f_BG.dtype)], axis=-1)
