"""Ids to vectors, equation (15): e_c = Embedding(c).

Tables stand outside the modules: parameters are {'tables': {name: [V, W]},
'net': ...}, and these functions turn (tables, ids) into embedded inputs. So a
model runs unchanged on whole tables, on a batch's rows, or on a shard.
"""

from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp

from eain_jax.data.features import NUM_RESERVED, Feature

Tables = Mapping[str, jax.Array]


@flax.struct.dataclass
class EmbeddedBatch:
  """The embedded inputs of a batch; see `layers` for the axis letters.

  Attributes:
    user_RW: the users; None where their ids have no table.
    target_RCAW: the candidates' item features.
    history_NAW: the packed history events' item features.
    context_RKW: the context features.
    segment_N: int32, request of each history event; R or more is padding.
    age_N: int32, days from each history event to its target, in buckets.
    position_R: int32, the target's index in its user's sequence.
    row_R: int32, place of the request in the global batch.
    valid_RC: bool, False for padding, and in training for what (17) drops.
  """

  user_RW: jax.Array | None
  target_RCAW: jax.Array
  history_NAW: jax.Array
  context_RKW: jax.Array
  segment_N: jax.Array
  age_N: jax.Array
  position_R: jax.Array
  row_R: jax.Array
  valid_RC: jax.Array

  @property
  def shape_RC(self) -> tuple[int, int]:
    num_requests, num_candidates = self.target_RCAW.shape[:2]
    return num_requests, num_candidates


def init_table(
  key: jax.Array, num_rows: int, width: int, stddev: float, columns: int = 1
) -> jax.Array:
  """A float32 table: normal, and 0 in the reserved rows.

  The unknown row starts at 0, the mean of the others, because no training
  example may ever reach it.

  Args:
    key: of the table.
    num_rows: V.
    width: W.
    stddev: of its values.
    columns: C, into which the rows are dealt out in turn.

  Returns:
    [L, C, W]: row r stands at [r // C, r % C], and zeros beyond row V - 1. The
    values of a row do not depend on V or C.
  """
  shape = (-(-num_rows // columns), columns, width)
  place = lambda axis: jax.lax.broadcasted_iota(jnp.int32, shape, axis)
  row = place(0) * columns + place(1)
  is_drawn = (row >= NUM_RESERVED) & (row < num_rows)
  return jnp.where(is_drawn, stddev * jax.random.normal(key, shape), 0.0)


def embed(table_VW: jax.Array, ids: jax.Array) -> jax.Array:
  """Equation (15): rows of a table; id 0, padding, gives a zero vector.

  Args:
    table_VW: [V, W].
    ids: int32, any shape, checked to be in [0, V) by the data layer.

  Returns:
    [..., W].
  """
  return table_VW[ids] * (ids > 0)[..., None].astype(table_VW.dtype)


def embed_mean(table_VW: jax.Array, ids_XM: jax.Array) -> jax.Array:
  """The mean of a multi-valued feature's embeddings.

  Args:
    table_VW: [V, W].
    ids_XM: int32 [..., M], padded with 0.

  Returns:
    [..., W]; zero where there is no value.
  """
  count = jnp.maximum((ids_XM > 0).sum(-1, keepdims=True), 1)
  return embed(table_VW, ids_XM).sum(-2) / count.astype(table_VW.dtype)


def embed_batch(
  tables: Tables,
  batch: Mapping,
  features: Sequence[Feature],
  compute_dtype: jax.typing.DTypeLike = jnp.float32,
) -> EmbeddedBatch:
  """Embeds a batch of `data.batches`, each distinct item once.

  Args:
    tables: [V, W] by feature name.
    batch: the arrays of one shard.
    features: those that have a table, at least one of them of items.
    compute_dtype: of the result; tables stay float32.

  Returns:
    The embedded inputs.
  """
  of_kind = lambda kind: [f for f in features if f.kind == kind]
  item_UAW = jnp.stack(
    [
      (embed_mean if f.multi_valued else embed)(
        tables[f.name], batch['items'][f.name]
      )
      for f in of_kind('item')
    ],
    axis=1,
  ).astype(compute_dtype)
  user_RW = None
  if of_kind('user'):
    user_RW = embed(tables['user'], batch['user']).astype(compute_dtype)
  context = [
    embed(tables[f.name], batch['context'][f.name]).astype(compute_dtype)
    for f in of_kind('context')
  ]
  num_requests, width = batch['user'].shape[0], item_UAW.shape[-1]
  # Every real user has an id, unknown ones too; an export knows no weights.
  valid_RC = batch['user'][:, None] > 0
  if 'weight' in batch:
    valid_RC = valid_RC & (batch['weight'] > 0)
  return EmbeddedBatch(
    user_RW=user_RW,
    target_RCAW=item_UAW[batch['target']],
    history_NAW=item_UAW[batch['history']],
    context_RKW=jnp.stack(context, axis=1)
    if context
    else jnp.zeros((num_requests, 0, width), compute_dtype),
    segment_N=batch['segment'],
    age_N=batch['age'],
    position_R=batch['position'],
    row_R=batch['row'],
    valid_RC=jnp.broadcast_to(valid_RC, batch['target'].shape),
  )
