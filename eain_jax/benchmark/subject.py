"""What is timed: a compiled step with its state and its batches."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from eain_jax.config import ModelConfig, TrainConfig
from eain_jax.data.batches import TrainStream
from eain_jax.data.dataset import Dataset
from eain_jax.training import parallel
from eain_jax.training.setup import set_up
from eain_jax.training.state import num_parameters

# A batch's static shapes: steps of one signature share one program.
Signature = tuple


def signature(batch: Mapping[str, Any]) -> Signature:
  return tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))


class Subject:
  """A step that can be run again and again.

  Attributes:
    config: of the training, resolved.
    stream: the batches.
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
      mode: 'train', or 'score', which runs on one device as an evaluation
        does.

    Raises:
      InputError: the batch does not suit the devices.
    """
    if mode == 'score':
      config = dataclasses.replace(config, parallelism='none')
    setup = set_up(dataset, model_name, model_config, config)
    self.config, self.stream = setup.config, setup.stream
    self.num_devices = parallel.num_shards(config.parallelism)
    self.num_parameters = num_parameters(setup.state.params)
    # `Any`, because the two modes have states and steps of different types.
    self.step: Any
    self._state: Any
    if mode == 'score':
      self.step = setup.score_step
      # The optimizer's state is let go.
      self._state = (setup.state.params, setup.state.stats)
    else:
      self.step = setup.train_step
      self._state = parallel.place_state(
        setup.state, config.parallelism, setup.stream.num_shards
      )
    self._trains = mode == 'train'

  def arguments(self, batch: Mapping[str, Any]) -> tuple:
    """What `step` takes: the present state and a batch."""
    return (self._state, batch) if self._trains else (*self._state, batch)

  def run(self, batch: Mapping[str, Any]) -> Any:
    """Starts a step; its metrics or logits, which may not be there yet."""
    if not self._trains:
      return self.step(*self._state, batch)
    self._state, metrics = self.step(self._state, batch)
    return metrics

  def run_to_end(self, batch: Mapping[str, Any]) -> None:
    """Runs a step and waits for all that it returns."""
    jax.block_until_ready((self.run(batch), self._state))

  def place(self, batch: Mapping[str, Any]) -> Any:
    """The batch on the devices, where the step will look for it."""
    if self.config.parallelism != 'pmap':
      return jax.device_put(batch)
    mesh = jax.make_mesh(
      (self.num_devices,),
      (parallel.AXIS,),
      axis_types=(AxisType.Auto,),
      devices=jax.local_devices(),
    )
    by_shard = NamedSharding(mesh, PartitionSpec(parallel.AXIS))
    return jax.device_put(batch, by_shard)


def num_examples(stream: TrainStream, step: int) -> int:
  """Examples of a step's batch; the last of an epoch holds fewer."""
  begin = step % stream.steps_per_epoch * stream.num_requests
  requests = min(stream.num_requests, len(stream.packer.part) - begin)
  return requests * stream.num_candidates
