"""The flags of binaries that time single steps: data, training, models."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from eain_jax.benchmark import host
from eain_jax.config import TimingConfig, TrainConfig, WorkloadConfig
from eain_jax.errors import InputError
from experiments import cli

# They are the binary's own, for --help.
flags.disclaim_key_flags()

# What acts on whole runs alone is no flag where steps are timed.
_OF_WHOLE_RUNS = (
  'epochs',
  'early_stopping',
  'input_timeout',
  'plateau_factor',
  'plateau_patience',
  'valid_negatives',
  'log_every',
  'save_every',
  'skip_above',
  'negatives_once',
)


def read(config: type[TimingConfig]) -> tuple[Any, WorkloadConfig, TrainConfig]:
  """What is measured, on what data, trained how; keeps to so many cores.

  Raises:
    FlagError: a flag's value cannot be.
  """
  try:
    measured = cli.config_from_flags(config)
    workload = cli.config_from_flags(WorkloadConfig)
    train = cli.config_from_flags(TrainConfig)
    host.limit_cores(measured.threads)
  except InputError as error:
    raise cli.FlagError(str(error)) from error
  return measured, workload, train


def define(without: Sequence[str] = ()) -> None:
  """Defines them, but for those of the training that `without` names."""
  cli.define_config(WorkloadConfig)
  cli.define_config(
    TrainConfig,
    shared=('seed',),
    without=(*_OF_WHOLE_RUNS, *without),
    batch_size=4096,
    clip_norm=0.0,
    ema_decay=0.0,
  )
  # The workload that other libraries are measured on.
  cli.define_models(
    embedding_dim=16,
    mlp=(200, 80),
    attention=(80, 40),
    attention_softmax=False,
    use_user=True,
    dropout=0.0,
    table_l2=0.0,
  )
