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
from eain_jax.training.objective import binary_cross_entropy, penalty
from eain_jax.training.row_update import (
  rows_of_opt_state,
  rows_of_params,
  updated_opt_state,
  updated_params,
)
from eain_jax.training.state import TrainState

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
) -> StepFn:
  """`train_step(state, batch) -> (state, metrics)`, pure, not yet compiled.

  Inside a map over `model.axis_name` the batch is one device's shard; losses
  and gradients are those of the global batch, whatever the weights of the
  shards. Metrics are those of the global batch: its mean `loss` (13),
  `total_loss` (14), and the `gradient_norm` before clipping.
  """
  axis_name = model.axis_name

  def mean_over_devices(tree):
    return jax.lax.pmean(tree, axis_name) if axis_name else tree

  def train_step(state: TrainState, batch: Mapping):
    params, opt_state = state.params, state.opt_state
    if 'rows' in batch:
      rows = batch['rows']
      params = rows_of_params(state.params, rows)
      opt_state = rows_of_opt_state(
        optimizer, state.opt_state, state.params, rows
      )
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    label_RC, weight_RC = batch['label'], batch['weight']
    if config.shuffle_labels:
      shuffle_key = jax.random.fold_in(key, 2)
      if axis_name:
        shuffle_key = jax.random.fold_in(
          shuffle_key, jax.lax.axis_index(axis_name)
        )
      label_RC = shuffle_within_batch(shuffle_key, label_RC)
    # The mean weight of a shard: shards with padding count by what they hold.
    mean_weight = mean_over_devices(weight_RC.sum())

    def loss_fn(params):
      inputs = embed_batch(
        params['tables'], batch, features, model.compute_dtype
      )
      logit_RC, updated = model.apply(
        {'params': params['net'], 'stats': state.stats},
        inputs,
        train=True,
        rngs={'dropout': jax.random.fold_in(key, DROPOUT_STREAM)},
        mutable=['stats'],
      )
      loss_RC = binary_cross_entropy(logit_RC, label_RC)
      loss = jnp.sum(loss_RC * weight_RC) / mean_weight
      total = loss + penalty(params, config.l2, model.config.table_l2)
      return total, (loss, updated.get('stats', {}))

    (total, (loss, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      params
    )
    grads, loss, total = mean_over_devices((grads, loss, total))
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params: Any = optax.apply_updates(params, updates)
    if 'rows' in batch:
      params = updated_params(state.params, rows, params)
      opt_state = updated_opt_state(
        optimizer, state.opt_state, state.params, rows, opt_state
      )
    metrics = {
      'loss': loss,
      'total_loss': total,
      'gradient_norm': optax.tree.norm(grads),
    }
    return TrainState(state.step + 1, params, stats, opt_state), metrics

  return train_step


def make_score_step(model: Model, features: Sequence[Feature]) -> ScoreFn:
  """`score_step(params, stats, batch) -> logits float32 [R, C]`, pure."""
  model = model.clone(axis_name=None)

  def score_step(params, stats, batch):
    inputs = embed_batch(params['tables'], batch, features, model.compute_dtype)
    variables = {'params': params['net'], 'stats': stats}
    return cast(jax.Array, model.apply(variables, inputs))

  return score_step
