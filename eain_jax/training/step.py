"""The training step and the scoring step: free pure functions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from eain_jax.config import TrainConfig
from eain_jax.data.features import Feature
from eain_jax.layers.embedding import embed_batch
from eain_jax.models import Model
from eain_jax.training.objective import (
  add_penalty_gradient,
  binary_cross_entropy,
  penalty,
  squared_norm,
)
from eain_jax.training.row_update import (
  rows_of_opt_state,
  rows_of_params,
  updated_opt_state,
  updated_params,
)
from eain_jax.training.state import TrainState
from eain_jax.training.table_access import exchanged_rows, open_tables

Metrics = dict[str, jax.Array]
StepFn = Callable[[TrainState, Mapping], tuple[TrainState, Metrics]]
ScoreFn = Callable[[Any, Any, Mapping], jax.Array]
DROPOUT_STREAM = 1


def shuffle_within_batch(key: jax.Array, label_RC: jax.Array) -> jax.Array:
  """Labels in a random order: what a leak test trains on.

  Within each request, or over the batch where a row is a single example.
  """
  axis = 1 if label_RC.shape[1] > 1 else 0
  return jax.random.permutation(key, label_RC, axis=axis, independent=True)


def make_train_step(
  model: Model,
  features: Sequence[Feature],
  optimizer: optax.GradientTransformation,
  config: TrainConfig,
  *,
  tables_are_cut: bool = False,
) -> StepFn:
  """`train_step(state, batch) -> (state, metrics)`, pure, not yet compiled.

  Inside a map over `model.axis_name` the batch is one device's shard; losses
  and gradients are those of the global batch, whatever the weights of the
  shards. Metrics are those of the global batch: its mean `loss` (13),
  `total_loss` (14), and the `gradient_norm` before clipping.

  Args:
    model: its `axis_name` is the map's, or None.
    features: of the dataset.
    optimizer: of Optax; it may treat the rows of a table alike or alone.
    config: penalties, clipping, how tables are updated.
    tables_are_cut: each device holds the rows of the tables that it owns; see
      `table_access`.
  """
  axis_name, read = model.axis_name, model.reads(features)
  penalties = (config.l2, model.config.table_l2)

  def sum_over_devices(tree):
    return jax.lax.psum(tree, axis_name) if axis_name else tree

  def train_step(state: TrainState, batch: Mapping):
    access = open_tables(
      state.params['tables'],
      batch,
      axis_name,
      are_cut=tables_are_cut,
      is_rowwise=config.table_update != 'dense',
    )
    run_key = jax.random.wrap_key_data(batch['key'], impl='threefry2x32')
    key = jax.random.fold_in(run_key, state.step)
    label_RC, weight_RC = batch['label'], batch['weight']
    if config.shuffle_labels:
      shuffle_key = jax.random.fold_in(key, 2)
      if axis_name:
        shuffle_key = jax.random.fold_in(
          shuffle_key, jax.lax.axis_index(axis_name)
        )
      label_RC = shuffle_within_batch(shuffle_key, label_RC)
    # Of all shards: one with padding counts by what it holds.
    total_weight = sum_over_devices(weight_RC.sum())

    def loss_fn(params):
      inputs = embed_batch(params['tables'], batch, read, model.compute_dtype)
      logit_RC, updated = model.apply(
        {'params': params['net'], 'stats': state.stats},
        inputs,
        train=True,
        rngs={'dropout': jax.random.fold_in(key, DROPOUT_STREAM)},
        mutable=['stats'],
      )
      loss_RC = binary_cross_entropy(logit_RC, label_RC)
      loss = jnp.sum(loss_RC * weight_RC) / total_weight
      return loss, updated.get('stats', {})

    seen = {'tables': access.seen, 'net': state.params['net']}
    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(seen)
    grads = {
      'tables': access.collect(grads['tables']),
      'net': sum_over_devices(grads['net']),
    }
    loss = sum_over_devices(loss)

    params, opt_state = state.params, state.opt_state
    if access.rows is not None:
      params = rows_of_params(params, access.rows)
      opt_state = rows_of_opt_state(
        optimizer, opt_state, state.params, access.rows
      )
    total_loss = loss + penalty(params, *penalties, access.total)
    grads = add_penalty_gradient(grads, params, *penalties)
    norm = jnp.sqrt(
      squared_norm(grads['net']) + access.total(squared_norm(grads['tables']))
    )
    if config.clip_norm:
      scale = jnp.where(norm > config.clip_norm, config.clip_norm / norm, 1.0)
      grads = jax.tree.map(lambda grad: grad * scale, grads)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params: Any = optax.apply_updates(params, updates)
    if access.rows is not None:
      params = updated_params(state.params, access.rows, params)
      opt_state = updated_opt_state(
        optimizer, state.opt_state, state.params, access.rows, opt_state
      )
    metrics = {
      'loss': loss,
      'total_loss': total_loss,
      'gradient_norm': norm,
    }
    if 'ahead' in batch:
      # What any process has to say of a later step; see `agreement`.
      assert axis_name is not None
      metrics['ahead'] = jax.lax.pmax(batch['ahead'], axis_name)
    return TrainState(state.step + 1, params, stats, opt_state), metrics

  return train_step


def make_score_step(
  model: Model,
  features: Sequence[Feature],
  *,
  axis_name: str | None = None,
) -> ScoreFn:
  """`score_step(params, stats, batch) -> logits float32 [R, C]`, pure.

  With `axis_name` the tables are cut over the devices of that axis, and the
  batch is one device's shard.
  """
  model, read = model.clone(axis_name=None), model.reads(features)

  def score_step(params, stats, batch):
    tables = params['tables']
    if axis_name is not None:
      tables = exchanged_rows(tables, batch['rows'], axis_name, False).seen
    inputs = embed_batch(tables, batch, read, model.compute_dtype)
    variables = {'params': params['net'], 'stats': stats}
    return cast(jax.Array, model.apply(variables, inputs))

  return score_step
