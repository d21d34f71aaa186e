"""The state of training: all that a run has learned, and nothing else."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from eain_jax.data.features import Feature
from eain_jax.layers.embedding import embed_batch, init_tables
from eain_jax.models import Model


@flax.struct.dataclass
class TrainState:
  """State before batch `step`.

  Attributes:
    step: int32, steps taken; the data position and all randomness follow.
    params: {'tables': {feature: [V, W]}, 'net': ...}, float32.
    stats: moving statistics of Dice; empty for models without it.
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
  seed: int,
) -> TrainState:
  """The state of step 0, a function of the seed.

  Args:
    model: its tables and network are made.
    features: of the dataset.
    optimizer: its state is made.
    batch: arrays of one shard, for their shapes.
    seed: of the parameters.
  """
  # Compiled, the forward pass, of which shapes alone are needed, is not run.
  make = jax.jit(functools.partial(_make_state, model, features, optimizer))
  return make(jax.random.key(seed), batch)


def _make_state(
  model: Model,
  features: Sequence[Feature],
  optimizer: optax.GradientTransformation,
  key: jax.Array,
  batch: Mapping,
) -> TrainState:
  table_key, net_key = jax.random.split(key)
  tables = init_tables(
    table_key, features, model.table_width, model.config.table_stddev
  )
  # Initializing outside of the mapped axis: shapes do not depend on it.
  inputs = embed_batch(tables, batch, features)
  variables: Any = model.clone(axis_name=None).init(net_key, inputs)
  params = {'tables': tables, 'net': dict(variables.get('params', {}))}
  return TrainState(
    jnp.zeros((), jnp.int32),
    params,
    dict(variables.get('stats', {})),
    optimizer.init(params),
  )


def num_parameters(params) -> int:
  """Scalars in all leaves."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
