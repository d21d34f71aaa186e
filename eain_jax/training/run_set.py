"""Runs of several models or settings in one folder, under one plan.

    plan.json           everything that decides the runs
    runs/NAME-seedN/    a run each; see `run_folder`

A plan that is started again reads its finished runs and goes on with the
others; the folder takes no other plan. Several processes may train the runs of
one plan: each takes what none has.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eain_jax.artifacts import (
  MANIFEST,
  check_manifest,
  refuse_existing,
  write_json,
)
from eain_jax.config import ModelConfig, TrainConfig
from eain_jax.data.dataset import Dataset
from eain_jax.errors import InputError, InUse
from eain_jax.locking import LOCK_FILE, tried
from eain_jax.training import loop, processes
from eain_jax.training.run_folder import (
  CONFIG_FILE,
  FREE_SETTINGS,
  METRICS_FILE,
  RESULT_FILE,
  differing_setting,
  read_settings,
)
from eain_jax.training.run_log import Report
from eain_jax.training.seeds import Member, fit_seeds

PLAN_FILE, RUNS_FOLDER = 'plan.json', 'runs'
# How often a process that waits for another's runs looks for them.
POLL_SECONDS = 2.0

Display = Callable[[str, int], contextlib.AbstractContextManager[Report]]


@dataclasses.dataclass(frozen=True)
class Run:
  """One trained model.

  Attributes:
    model: of `models.MODELS`.
    seed: of its training.
    settings: as `loop.run_config`.
    result: the content of `result.json`.
    records: the lines of `metrics.jsonl`.
  """

  model: str
  seed: int
  settings: dict[str, Any]
  result: dict[str, Any]
  records: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Job:
  """A run that a plan asks for.

  Attributes:
    name: tells it from the plan's other runs of its seed.
    model: of `models.MODELS`.
    model_config: its settings.
    config: how it is trained, with its seed.
  """

  name: str
  model: str
  model_config: ModelConfig
  config: TrainConfig

  def settings(self) -> dict[str, Any]:
    """All that decides the run but its seed, ready for JSON."""
    training = deciding(self.config)
    training.pop('seed')
    return {
      'model_config': self.model_config.to_dict(),
      'train_config': training,
    }

  def folder(self, output_dir: Path) -> Path:
    return output_dir / RUNS_FOLDER / f'{self.name}-seed{self.config.seed}'

  def is_finished(self, output_dir: Path) -> bool:
    """Whether the run is whole: its manifest is what it writes last."""
    return (self.folder(output_dir) / MANIFEST).is_file()


def train_job(
  dataset: Dataset,
  job: Job,
  output_dir: Path,
  display: Display,
) -> None:
  """Trains one run of a plan; a finished one is not repeated.

  Args:
    dataset: of the plan.
    job: the run.
    output_dir: of the plan.
    display: makes what shows the run of a title and of so many epochs, in the
      first process.
  """
  if processes.gather(np.array(job.is_finished(output_dir))).all():
    return
  with contextlib.ExitStack() as stack:
    report = None
    if processes.is_first():
      title = f'{job.name}, seed {job.config.seed}'
      report = stack.enter_context(display(title, job.config.epochs))
    folder = job.folder(output_dir)
    loop.fit(dataset, job.model, job.model_config, job.config, folder, report)


def _train_seeds(
  dataset: Dataset, jobs: Sequence[Job], output_dir: Path, display: Display
) -> list[Job]:
  """Trains runs that differ in their seeds alone; those that others train."""
  first = jobs[0]
  with contextlib.ExitStack() as stack:
    members = {}
    for job in jobs:
      # The seed first, for it tells them apart where titles are cut.
      title = f'seed {job.config.seed}, {job.name}'
      report = stack.enter_context(display(title, job.config.epochs))
      members[job.config.seed] = Member(job.folder(output_dir), report)
    left = fit_seeds(
      dataset, first.model, first.model_config, first.config, members
    )
  return [job for job in jobs if job.config.seed in left]


def train_jobs(
  dataset: Dataset,
  jobs: Sequence[Job],
  output_dir: Path,
  display: Display,
  seeds_at_once: int = 1,
) -> list[Job]:
  """Trains what nobody has trained and nobody trains now.

  Args:
    dataset: of the plan.
    jobs: its runs, in the order in which they are wanted.
    output_dir: of the plan.
    display: as of `train_job`.
    seeds_at_once: with the first that is wanted, so many of its other seeds
      are trained by one program; see `seeds.fit_seeds`.

  Returns:
    What other processes train.
  """
  elsewhere, wanted = [], list(jobs)

  def is_taken(job: Job) -> bool:
    # Before all that a run sets up; it looks again when it begins.
    with tried(job.folder(output_dir) / LOCK_FILE) as is_ours:
      return is_ours is False and not job.is_finished(output_dir)

  while wanted:
    job = wanted.pop(0)
    if is_taken(job):
      elsewhere.append(job)
      continue
    seeds = [job]
    if seeds_at_once > 1 and not job.is_finished(output_dir):
      what = (job.name, job.model, job.settings())
      alike = [
        other
        for other in wanted
        if (other.name, other.model, other.settings()) == what
        and not other.is_finished(output_dir)
        and not is_taken(other)
      ]
      seeds += alike[: seeds_at_once - 1]
      wanted = [other for other in wanted if other not in seeds]
    try:
      if len(seeds) > 1:
        elsewhere += _train_seeds(dataset, seeds, output_dir, display)
      else:
        train_job(dataset, job, output_dir, display)
    except InUse:
      elsewhere.append(job)
  return elsewhere


def train_all(
  dataset: Dataset,
  jobs: Sequence[Job],
  output_dir: Path,
  display: Display,
  say: Callable[[str], None],
  seeds_at_once: int = 1,
) -> None:
  """Trains what nobody has trained, and waits for what others train.

  Where such a process ends early its runs go on here.

  Args:
    dataset: of the plan.
    jobs: its runs.
    output_dir: of the plan.
    display: as of `train_job`.
    say: is told, once, what is waited for.
    seeds_at_once: as of `train_jobs`; of one process.
  """
  if jax.process_count() > 1:
    for job in jobs:
      train_job(dataset, job, output_dir, display)
    return
  left = train_jobs(dataset, jobs, output_dir, display, seeds_at_once)
  if left:
    names = ', '.join(f'{job.name}, seed {job.config.seed}' for job in left)
    say(f'waiting for what other processes train: {names}')
  while left:
    time.sleep(POLL_SECONDS)
    left = train_jobs(dataset, left, output_dir, display, seeds_at_once)


def _settings_in(
  dataset: Dataset, job: Job, output_dir: Path
) -> dict[str, Any]:
  """What the folder of a run must say; InputError where it says otherwise."""
  folder = job.folder(output_dir)
  settings = loop.run_config(dataset, job.model, job.model_config, job.config)
  if differs := differing_setting(read_settings(folder), settings):
    raise InputError(
      f'{folder} holds a run with {differs}: name another --output_dir'
    )
  return settings


def check_begun(
  dataset: Dataset, jobs: Sequence[Job], output_dir: Path
) -> None:
  """Makes sure that runs go on, before any is trained for hours.

  The plan says neither what is in the dataset nor which libraries are there.

  Raises:
    InputError: a run was begun on another dataset, or by other versions.
  """
  for job in jobs:
    if (job.folder(output_dir) / CONFIG_FILE).is_file():
      _settings_in(dataset, job, output_dir)


def read_job(dataset: Dataset, job: Job, output_dir: Path) -> Run:
  """A finished run of a plan.

  Raises:
    InputError: its files are not as they were written.
  """
  folder = job.folder(output_dir)
  check_manifest(folder)
  settings = _settings_in(dataset, job, output_dir)
  # Where a dataset lies says nothing about the numbers.
  settings['dataset'].pop('path')
  try:
    result = json.loads((folder / RESULT_FILE).read_text())
    lines = (folder / METRICS_FILE).read_text().splitlines()
    records = [json.loads(line) for line in lines]
  except (OSError, ValueError) as error:
    raise InputError(
      f'{folder} does not hold a whole run: remove it to train it again'
    ) from error
  return Run(job.model, job.config.seed, settings, result, records)


def deciding(config: TrainConfig) -> dict[str, Any]:
  """A config without the devices, on which no number depends."""
  values = config.to_dict()
  return {k: v for k, v in values.items() if k not in FREE_SETTINGS}


def check_plan(
  output_dir: Path, plan: Mapping[str, Any], *, joins: bool = False
) -> None:
  """Raises InputError where the folder holds something but this very plan.

  Args:
    output_dir: of the plan; need not be there.
    plan: ready for JSON.
    joins: it must be there.
  """
  plan_file = output_dir / PLAN_FILE
  if not plan_file.is_file():
    if joins:
      raise InputError(
        f'{output_dir} holds no plan to join: start the same command without '
        '--join first'
      )
    refuse_existing(output_dir)
    return
  try:
    found = json.loads(plan_file.read_text())
    if not isinstance(found, dict):
      raise ValueError('a plan is an object')
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(
      f'{plan_file} is damaged: name another folder for --output_dir'
    ) from error
  if found != plan:
    differing = sorted(
      key
      for key in {*found, *plan}
      if key not in found or key not in plan or found[key] != plan[key]
    )
    raise InputError(
      f'--output_dir={output_dir} holds what other flags made, or another '
      f'version (other {", ".join(differing)}, see {plan_file}): name another '
      'folder'
    )


def claim_plan(
  output_dir: Path,
  plan: Mapping[str, Any],
  prepare: Callable[[], None] = lambda: None,
) -> None:
  """Makes the folder this plan's, or leaves it as it was.

  Args:
    output_dir: that `check_plan` has passed; the first process writes.
    plan: ready for JSON.
    prepare: makes what the runs need; where it fails nothing is left.
  """
  plan_file = output_dir / PLAN_FILE
  if not processes.is_first():
    return
  is_new = not plan_file.is_file()
  if is_new:
    write_json(plan_file, plan)
  try:
    prepare()
  except BaseException:
    if is_new:
      plan_file.unlink()
    raise
