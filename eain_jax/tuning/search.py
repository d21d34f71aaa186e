"""A search that Optuna steers, on the validation part alone.

It follows from data, settings and seed: each trial has a sampler of its own
seed, so a search that was interrupted ends as one that was not. The first trial
has the settings that the search begins with, so what is found is, on
validation, never worse.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from eain_jax.data.dataset import Dataset
from eain_jax.errors import BadSettings, InputError
from eain_jax.training import loop
from eain_jax.training.run_folder import METRICS_FILE, software
from eain_jax.training.run_log import Report
from eain_jax.training.run_set import deciding
from eain_jax.tuning.space import Space, describe

JOURNAL_FILE, RUNS_FOLDER = 'study.journal', 'runs'
# The first ones are drawn at random, and none of them is given up.
RANDOM_TRIALS = 3


class _GivenUp(Exception):
  """The trial does worse than half of those before it did by then."""


@dataclasses.dataclass(frozen=True)
class Trial:
  """A trial that ended.

  Attributes:
    number: from 0.
    values: of the settings that are searched, as `Space.configs` takes them.
    epochs: by epoch the objective over `valid_negatives` candidates.
    value: the objective over all candidates; None where it has none.
    result: the content of its `result.json`; None where it has no value.
    failed: why its settings cannot be trained; None where they can, so that a
      trial without a value was given up.
  """

  number: int
  values: dict[str, Any]
  epochs: dict[int, float]
  value: float | None
  result: dict[str, Any] | None
  failed: str | None = None


@dataclasses.dataclass(frozen=True)
class Search:
  """What is searched, and how.

  Attributes:
    dataset: trials are trained and validated on it.
    space: settings and their ranges.
    folder: keeps the journal, and the run that is at work.
    objective: a validation metric, the higher the better.
    sampler: 'tpe' or 'random'.
    prune: give up trials that are below the median of those before.
    seed: of the sampler.
  """

  dataset: Dataset
  space: Space
  folder: Path
  objective: str
  sampler: str
  prune: bool
  seed: int

  def plan(self) -> dict[str, Any]:
    """Everything that decides which trials there are, but for their number."""
    return {
      **software(),
      'optuna': optuna.__version__,
      'dataset': self.dataset.fingerprint,
      'split': self.dataset.manifest['split'],
      'model': self.space.model,
      'model_config': self.space.model_config.to_dict(),
      'train_config': deciding(self.space.train_config),
      'space': {n: describe(d) for n, d in self.space.distributions.items()},
      'objective': self.objective,
      'sampler': self.sampler,
      'prune': self.prune,
      'seed': self.seed,
    }

  def run(
    self,
    num_trials: int,
    report: Callable[[int, Mapping[str, Any]], Report | None],
  ) -> list[Trial]:
    """Trials up to `num_trials`, those of earlier calls among them.

    Args:
      num_trials: that have ended, when this returns.
      report: of a trial's number and values, what is called with every record
        of its log.

    Returns:
      All trials that ended, in their order.

    Raises:
      Interrupted: told to stop; the next call goes on with the same trial.
      InputError: as `loop.fit`, but for settings that cannot be trained; a
        trial has no value of the objective; the journal is damaged, or cannot
        be written.
    """
    study = self._open()
    while len(ended := _ended(study)) < num_trials:
      self._run_trial(study, len(ended), report)
    return ended

  def _open(self) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    self.folder.mkdir(parents=True, exist_ok=True)
    pruner = optuna.pruners.MedianPruner(RANDOM_TRIALS)
    path = self.folder / JOURNAL_FILE
    with self._journal(reads=True):
      _mend_journal(path)
      study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        study_name=self.space.model,
        direction='maximize',
        pruner=pruner if self.prune else optuna.pruners.NopPruner(),
        load_if_exists=True,
      )
      for trial in study.get_trials(states=(TrialState.RUNNING,)):
        # It was interrupted. The next one is drawn as it was, and goes on.
        study.tell(trial.number, state=TrialState.FAIL)
    return study

  @contextlib.contextmanager
  def _journal(self, *, reads: bool = False) -> Iterator[None]:
    """Turns what Optuna raises of its journal into a sentence."""
    path = self.folder / JOURNAL_FILE
    try:
      yield
    except OSError as error:
      raise InputError(
        f'{path} cannot be kept: {error.strerror or error}'
      ) from error
    except (ValueError, KeyError, TypeError) as error:
      if not reads:
        raise
      raise InputError(
        f'{path} is damaged: name another --output_dir, or bring it back'
      ) from error

  def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
    seed = (self.seed + number) % 2**32
    if self.sampler == 'random':
      sampler = optuna.samplers.RandomSampler(seed)
    else:
      sampler = optuna.samplers.TPESampler(
        n_startup_trials=RANDOM_TRIALS, multivariate=True, seed=seed
      )
    if number:
      return sampler
    with warnings.catch_warnings():
      # It may change, and so the version is part of the plan.
      warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
      return optuna.samplers.PartialFixedSampler(self.space.start(), sampler)

  def _run_trial(
    self,
    study: optuna.Study,
    number: int,
    report: Callable[[int, Mapping[str, Any]], Report | None],
  ) -> None:
    study.sampler = self._sampler(number)
    with self._journal():
      trial = study.ask(dict(self.space.distributions))
    work_dir = self.folder / RUNS_FOLDER / f'trial-{number}'
    show, reported = report(number, trial.params), set()

    def report_epochs() -> None:
      # The log has what came before an interruption, too.
      for line in (work_dir / METRICS_FILE).read_text().splitlines():
        logged = json.loads(line)
        epoch = round(logged['epoch'])
        if logged['kind'] == 'valid' and epoch not in reported:
          with self._journal():
            trial.report(logged[self.objective], epoch)
          reported.add(epoch)

    def told(record: Mapping[str, Any]) -> None:
      if show:
        show(record)
      if record['kind'] != 'valid':
        return
      report_epochs()
      with self._journal():
        if trial.should_prune():
          raise _GivenUp

    try:
      fitted = loop.fit(
        self.dataset,
        self.space.model,
        *self.space.configs(trial.params),
        work_dir,
        told,
        parts=('valid',),
      )
    except (_GivenUp, BadSettings) as error:
      with self._journal():
        if isinstance(error, BadSettings):
          trial.set_user_attr('failed', error.reason)
        study.tell(trial, state=TrialState.PRUNED)
    else:
      report_epochs()  # Of a run that had ended before it was told of.
      value = fitted.result['valid'][self.objective]
      if value is None or not math.isfinite(value):
        raise InputError(
          f'the validation part has no {self.objective} to search for: name '
          'another --objective and --output_dir'
        )
      with self._journal():
        trial.set_user_attr('result', fitted.result)
        study.tell(trial, value)
    # Its weights are of no further use, and many trials are many gigabytes.
    if work_dir.is_dir():
      shutil.rmtree(work_dir)


def _mend_journal(path: Path) -> None:
  """Takes back what a kill leaves: Optuna's lock, and a line cut short.

  Nobody waits for the lock, for the folder is locked by who calls this; and
  Optuna reads no journal that goes on after half a line.
  """
  for lock in path.parent.glob(f'{path.name}.lock*'):
    lock.unlink(missing_ok=True)
  if path.is_file():
    content = path.read_bytes()
    whole = content.rfind(b'\n') + 1
    if whole < len(content):
      os.truncate(path, whole)


def _ended(study: optuna.Study) -> list[Trial]:
  states = (TrialState.COMPLETE, TrialState.PRUNED)
  return [_trial(n, t) for n, t in enumerate(study.get_trials(states=states))]


def _trial(number: int, trial: FrozenTrial) -> Trial:
  is_complete = trial.state == TrialState.COMPLETE
  return Trial(
    number,
    trial.params,
    trial.intermediate_values,
    trial.value if is_complete else None,
    trial.user_attrs.get('result'),
    trial.user_attrs.get('failed'),
  )
