"""What the models see of a batch: examples, fields, first-order weights."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from eain_jax.data.features import Feature, names_of
from eain_jax.layers.attention import mean_history
from eain_jax.layers.embedding import EmbeddedBatch


def per_example(x_RX: jax.Array, num_candidates: int) -> jax.Array:
  """[B, ...] from [R, ...]: each request's row once a candidate."""
  return jnp.repeat(x_RX, num_candidates, axis=0)


def example_rows(inputs: EmbeddedBatch) -> jax.Array:
  """int32 [B]: each example's place in the global batch."""
  num_candidates = inputs.shape_RC[1]
  candidate_1C = jnp.arange(num_candidates)[None, :]
  row_RC = inputs.row_R[:, None] * num_candidates + candidate_1C
  return row_RC.reshape(-1)


def flat_history(inputs: EmbeddedBatch, dim: int) -> jax.Array:
  """[N, E]: the first `dim` columns of each event's features, concatenated."""
  history_NAD = inputs.history_NAW[..., :dim]
  return history_NAD.reshape(history_NAD.shape[0], -1)


def flat_target(inputs: EmbeddedBatch, dim: int) -> jax.Array:
  """[R, C, E]: as `flat_history`, of the candidates."""
  target_RCAD = inputs.target_RCAW[..., :dim]
  return target_RCAD.reshape(*inputs.shape_RC, -1)


def pooled_history(inputs: EmbeddedBatch, dim: int) -> jax.Array:
  """[R, E]: the mean of each history."""
  return mean_history(
    flat_history(inputs, dim), inputs.segment_N, inputs.shape_RC[0]
  )


def make_fields(
  inputs: EmbeddedBatch, h_u_BE: jax.Array, dim: int
) -> jax.Array:
  """[B, F, D]: user, target features, parts of h_u, context features.

  Where users have no table there is no field of theirs.
  """
  num_requests, num_candidates = inputs.shape_RC
  batch = num_requests * num_candidates
  target_BAD = inputs.target_RCAW[..., :dim].reshape(batch, -1, dim)
  fields = [
    target_BAD,
    h_u_BE.reshape(batch, -1, dim),
    per_example(inputs.context_RKW[..., :dim], num_candidates),
  ]
  if inputs.user_RW is not None:
    user_R1D = inputs.user_RW[:, None, :dim]
    fields.insert(0, per_example(user_R1D, num_candidates))
  return jnp.concatenate(fields, axis=1)


def field_names(read: Sequence[Feature]) -> list[str]:
  """The names of the fields of `make_fields`, in their order: [F].

  Args:
    read: features that the model has tables of.
  """
  items = names_of(read, 'item')
  return [
    *names_of(read, 'user'),
    *items,
    *(f'history {name}' for name in items),
    *names_of(read, 'context'),
  ]


def features_read(
  features: Sequence[Feature], use_user: bool, use_context: bool = True
) -> tuple[Feature, ...]:
  """Those that are an input; a model has tables of these alone."""
  read = {'item': True, 'user': use_user, 'context': use_context}
  return tuple(f for f in features if read[f.kind])


def first_order(inputs: EmbeddedBatch, column: int) -> jax.Array:
  """float32 [R, C]: the sum of one weight a feature value, found in `column`.

  The history counts as the mean of its events' weights.
  """
  weight = lambda x: x[..., column].astype(jnp.float32)
  pooled_RA = mean_history(
    weight(inputs.history_NAW), inputs.segment_N, inputs.shape_RC[0]
  )
  request_R = pooled_RA.sum(-1) + weight(inputs.context_RKW).sum(-1)
  if inputs.user_RW is not None:
    request_R += weight(inputs.user_RW)
  return weight(inputs.target_RCAW).sum(-1) + request_R[:, None]
