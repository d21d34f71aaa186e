"""What is timed: a compiled step with its state and its batches."""

import dataclasses
from typing import Any

import jax
import numpy as np

from eain_jax.config import ModelConfig, TrainConfig
from eain_jax.data.dataset import Dataset
from eain_jax.training.device_data import STEPS_A_CALL
from eain_jax.training.setup import set_up

# A batch's static shapes: steps of one signature share one program.
Signature = tuple


def signature(batch: Any) -> Signature:
  # A number among the arrays is a static size itself.
  return tuple(
    leaf if isinstance(leaf, int) else np.shape(leaf)
    for leaf in jax.tree.leaves(batch)
  )


def config_of_mode(config: TrainConfig, mode: str) -> TrainConfig:
  """Scoring runs on one device, as an evaluation of one model does."""
  if mode != 'score':
    return config
  # Scores are read from whole tables, so nothing is planned.
  return dataclasses.replace(
    config,
    parallelism='none',
    num_devices=0,
    data_placement='host',
    table_update='dense',
  )


class Subject:
  """A call of the devices that can be made again and again.

  A call is a step; with the data on the device it is many steps, and its
  "batch" is what the host sends for them.

  Attributes:
    config: of the training, resolved.
    stream: the batches.
    steps_a_call: 1, or how many steps a call makes.
    step: compiled.
    num_parameters: of the model.
    num_devices: that take part.
  """

  def __init__(
    self,
    dataset: Dataset,
    model_name: str,
    model_config: ModelConfig,
    config: TrainConfig,
    mode: str,
  ):
    """Sets a model up.

    Args:
      dataset: an open dataset.
      model_name: of `models.MODELS`.
      model_config: its settings.
      config: how it is trained.
      mode: 'train' or 'score'; see `config_of_mode`.

    Raises:
      InputError: the batch does not suit the devices.
    """
    config = config_of_mode(config, mode)
    setup = set_up(dataset, model_name, model_config, config)
    self.config, self.stream = setup.config, setup.stream
    self._runner, self.steps_a_call = setup.device_runner, 1
    self._placement = setup.placement
    self.num_devices = setup.placement.num_shards
    self.num_parameters = setup.num_parameters
    state = setup.make_state()
    # `Any`, because the two modes have states and steps of different types.
    self.step: Any
    self._state: Any
    if mode == 'score':
      self.step = setup.score_step
      # The optimizer's state is let go.
      self._state = (state.params, state.stats)
    else:
      self.step = setup.train_step
      if self._runner:
        self.step, self.steps_a_call = self._runner.run, STEPS_A_CALL
      self._state = state
    self._trains = mode == 'train'

  def batch(self, number: int) -> Any:
    """What the host makes for a call."""
    if not self._runner:
      return self.stream.batch(number)
    count = self.steps_a_call
    return self._runner.inputs(number * count, count)

  def num_examples(self, number: int) -> int:
    """Examples of a call; the last step of an epoch holds fewer."""
    first = number * self.steps_a_call
    steps = range(first, first + self.steps_a_call)
    return sum(self.stream.num_examples(step) for step in steps)

  def arguments(self, batch: Any) -> tuple:
    """What `step` takes: the present state and a batch."""
    if self._runner:
      sent = batch.steps, batch.count, batch.num_events
      return self._state, self._runner.columns, *sent
    return (self._state, batch) if self._trains else (*self._state, batch)

  def run(self, batch: Any) -> Any:
    """Starts a call; its metrics or logits, which may not be there yet."""
    if not self._trains:
      return self.step(*self.arguments(batch))
    self._state, metrics = self.step(*self.arguments(batch))
    return metrics

  def run_to_end(self, batch: Any) -> None:
    """Runs a step and waits for all that it returns."""
    jax.block_until_ready((self.run(batch), self._state))

  def feed(self, batch: Any) -> Any:
    """The batch as a run hands it over, from the host."""
    return self._placement.place_batch(batch)

  def place(self, batch: Any) -> Any:
    """The batch on the devices, where the step will look for it."""
    if self._runner:
      return batch.replace(steps=jax.device_put(batch.steps))
    return self._placement.put_batch(batch)
