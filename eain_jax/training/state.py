"""The state of training: all that a run has learned, and nothing else."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from eain_jax.data.features import Feature
from eain_jax.layers.embedding import embed_batch, init_table
from eain_jax.models import Model


@flax.struct.dataclass
class TrainState:
  """State before batch `step`.

  Attributes:
    step: int32, steps taken; the data position and all randomness follow.
    params: {'tables': {feature: [V, W]}, 'net': ...}, float32; of the features
      that the model reads.
    stats: moving statistics of Dice, and of how many steps; empty for models
      without it.
    opt_state: of the optimizer.
  """

  step: jax.Array
  params: Mapping[str, Any]
  stats: Mapping[str, Any]
  opt_state: optax.OptState


def init_state(
  model: Model,
  features: Sequence[Feature],
  optimizer: optax.GradientTransformation,
  batch: Mapping,
  key: jax.Array,
  *,
  num_owners: int = 1,
  place_table: Callable[[jax.Array], jax.Array] = lambda x: x[:, 0],
) -> TrainState:
  """The state of step 0, a function of the key. Jit it: no forward pass runs.

  Args:
    model: its tables and network are made.
    features: of the dataset.
    optimizer: its state is made.
    batch: arrays of one shard, or their shapes.
    key: of the parameters.
    num_owners: devices that tables are cut over.
    place_table: a table as it is to lie, from `embedding.init_table`.
  """
  table_key, net_key = jax.random.split(key)
  width, stddev = model.table_width, model.config.table_stddev
  read = model.reads(features)
  tables = {
    feature.name: place_table(
      init_table(
        jax.random.fold_in(table_key, number),
        feature.num_rows,
        width,
        stddev,
        num_owners,
      )
    )
    # By its number in the dataset, whatever else a model reads.
    for number, feature in enumerate(features)
    if feature in read
  }
  # For shapes alone: one row stands for any table, and zeros for any ids.
  inputs = embed_batch(
    {feature.name: jnp.zeros((1, width)) for feature in read},
    jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch),
    read,
  )
  # Initializing outside of the mapped axis: shapes do not depend on it.
  variables: Any = model.clone(axis_name=None).init(net_key, inputs)
  params = {'tables': tables, 'net': dict(variables.get('params', {}))}
  return TrainState(
    jnp.zeros((), jnp.int32),
    params,
    dict(variables.get('stats', {})),
    optimizer.init(params),
  )
