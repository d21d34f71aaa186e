"""The loop: evaluate, save, next batch, step, log; do not change the order.

The state at the top of the loop is the state before batch `step`. What the
loop itself remembers (best so far, counters) is saved with the state, and the
log is cut back to the restored step, so a run that is started again goes on as
if it had never stopped.
"""

import collections
import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import eain_jax
from eain_jax.artifacts import write_json, write_text
from eain_jax.config import ModelConfig, TrainConfig
from eain_jax.data.batches import EvalStream, make_eval_stream, prefetch
from eain_jax.data.dataset import Dataset
from eain_jax.errors import InputError, Interrupted
from eain_jax.evaluation import evaluator
from eain_jax.training import processes
from eain_jax.training.agreement import AgreedBatches
from eain_jax.training.checkpoint import Checkpoints
from eain_jax.training.device_data import STEPS_A_CALL
from eain_jax.training.device_memory import check_memory
from eain_jax.training.memory import release_freed_memory
from eain_jax.training.optimizer import set_plateau_factor
from eain_jax.training.parallel import Placement
from eain_jax.training.setup import Setup, resolve_config, set_up
from eain_jax.training.state import TrainState
from eain_jax.training.step import ScoreFn
from eain_jax.training.stopping import stop_signals

EVAL_BATCH_SIZE = 16_384
CONFIG_FILE, METRICS_FILE, RESULT_FILE = (
  'config.json',
  'metrics.jsonl',
  'result.json',
)
# A run may go on on other devices than it began on.
FREE_SETTINGS = ('parallelism', 'num_devices', 'data_placement')
Report = Callable[[Mapping[str, Any]], None]


@dataclasses.dataclass
class Record:
  """What the loop remembers beside the state.

  Attributes:
    best_gauc: of all evaluations so far.
    best_step: its step.
    stale_evaluations: since the best.
    stale_at_rate: since the best, or since the learning rate fell.
    plateau_factor: on the learning rate.
    evaluated_step: the last step that was evaluated.
    seconds: training time so far, without evaluations.
    seconds_waiting: of these, for the input.
  """

  best_gauc: float = -math.inf
  best_step: int = -1
  stale_evaluations: int = 0
  stale_at_rate: int = 0
  plateau_factor: float = 1.0
  evaluated_step: int = 0
  seconds: float = 0.0
  seconds_waiting: float = 0.0


def run_config(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  config: TrainConfig,
) -> dict[str, Any]:
  """What identifies a run; written as `config.json`."""
  config = resolve_config(dataset, model_name, model_config, config)
  return _settings(dataset, model_name, model_config, config)


def _settings(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  config: TrainConfig,
) -> dict[str, Any]:
  """As `run_config`, of a config with nothing left open."""
  return {
    'version': eain_jax.__version__,
    'dataset': {
      'path': str(dataset.path.resolve()),
      'fingerprint': dataset.fingerprint,
    },
    'model': model_name,
    'model_config': model_config.to_dict(),
    'train_config': config.to_dict(),
  }


def _check_same_run(path: Path, expected: Mapping[str, Any]) -> None:
  """Raises InputError where `path` belongs to a run with other settings."""
  found = json.loads(path.read_text())
  flat = lambda tree: {
    f'{group}.{name}' if isinstance(values, dict) else group: value
    for group, values in tree.items()
    for name, value in (
      values.items() if isinstance(values, dict) else [('', values)]
    )
  }
  # The dataset's folder may move, its fingerprint may not change.
  free = {'dataset.path', *(f'train_config.{name}' for name in FREE_SETTINGS)}
  old, new = flat(found), flat(expected)
  for name in sorted((old.keys() | new.keys()) - free):
    if old.get(name) != new.get(name):
      raise InputError(
        f'{path.parent} holds a run with {name}={old.get(name)!r}, this one '
        f'has {new.get(name)!r}: name another --work_dir, or the same settings'
      )


def _cut_log(path: Path, step: int) -> None:
  """Keeps the records up to a step: what comes later will come again."""
  if not path.is_file():
    return
  kept = []
  for line in path.read_text(errors='replace').splitlines():
    try:
      record = json.loads(line)
    except ValueError:
      break  # The process was killed while it wrote this one.
    if record['step'] <= step:
      kept.append(record)
  write_text(path, ''.join(json.dumps(record) + '\n' for record in kept))


class _Log:
  """Appends records to `metrics.jsonl`, and to a report of the caller's."""

  def __init__(self, path: Path | None, report: Report | None):
    self._file = path.open('a') if path else None
    self._report = report

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    if self._file:
      self._file.close()

  def __call__(self, **record: Any) -> None:
    if self._file:
      self._file.write(json.dumps(record) + '\n')
      self._file.flush()
    if self._report:
      self._report(record)

  def say(self, text: str) -> None:
    """A line for a person: it goes to the report alone."""
    if self._report:
      self._report({'kind': 'note', 'step': 0, 'text': text})


def _claim_folder(work_dir: Path, settings: Mapping[str, Any]) -> None:
  """Makes a run's folder, or checks that it holds this very run.

  The first process has made it when others come.
  """
  if not processes.is_first():
    if not (work_dir / CONFIG_FILE).is_file():
      raise _not_shared(work_dir)
    _check_same_run(work_dir / CONFIG_FILE, settings)
    return
  work_dir.mkdir(parents=True, exist_ok=True)
  if (work_dir / CONFIG_FILE).is_file():
    _check_same_run(work_dir / CONFIG_FILE, settings)
  elif any(work_dir.iterdir()):
    raise InputError(
      f'--work_dir={work_dir} holds something that is not a run: name another '
      'folder'
    )
  write_json(work_dir / CONFIG_FILE, settings)


def _not_shared(work_dir: Path) -> InputError:
  return InputError(
    f'--work_dir={work_dir} is not one folder of all processes: name one on '
    'storage that they share'
  )


def _check_shared(work_dir: Path, latest_step: int | None) -> None:
  """Raises InputError where processes see different checkpoints."""
  steps = processes.gather(np.array(-1 if latest_step is None else latest_step))
  if (steps != steps[0]).any():
    raise _not_shared(work_dir)


@dataclasses.dataclass(frozen=True)
class FitResult:
  """What a run came to.

  Attributes:
    result: the content of `result.json`.
    params: of the best evaluation, as they lie on the devices of the run.
    stats: of the best evaluation.
  """

  result: dict[str, Any]
  params: Any
  stats: Any


@dataclasses.dataclass(frozen=True)
class _Plan:
  """All that the loop uses and does not change."""

  dataset: Dataset
  setup: Setup
  valid: EvalStream
  checkpoints: Checkpoints | None
  log: _Log
  stop_asked: Callable[[], bool]

  @property
  def config(self) -> TrainConfig:
    return self.setup.config

  @property
  def steps_per_epoch(self) -> int:
    return self.setup.stream.steps_per_epoch


def fit(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  config: TrainConfig,
  work_dir: Path | None = None,
  report: Report | None = None,
) -> FitResult:
  """Trains a model to its best validation GAUC and evaluates that on test.

  With several processes all call it; the first one alone writes and reports.

  Args:
    dataset: an open dataset.
    model_name: of `models.MODELS`.
    model_config: its settings.
    config: how to train.
    work_dir: keeps config, metrics, checkpoints and result; a run that was
      interrupted there goes on. None: nothing is kept.
    report: is called with every record of the log.

  Raises:
    InputError: the folder holds another run; the batch or the state does not
      suit the devices; the loss is not finite.
    Interrupted: SIGTERM or SIGINT came; the state is saved in `work_dir`.
  """
  setup = processes.together(
    lambda: set_up(dataset, model_name, model_config, config)
  )
  placement = setup.placement
  processes.together(
    lambda: check_memory(
      setup.state_shapes, placement, saves=work_dir is not None
    )
  )
  settings = _settings(dataset, model_name, model_config, setup.config)
  record = Record()
  with contextlib.ExitStack() as stack:
    checkpoints, log_path = None, None
    if work_dir:
      processes.first_then_others(lambda: _claim_folder(work_dir, settings))
      checkpoints = stack.enter_context(Checkpoints(work_dir, placement))
      _check_shared(work_dir, checkpoints.latest_step)
      if processes.is_first():
        log_path = work_dir / METRICS_FILE
    if checkpoints and checkpoints.latest_step is not None:
      state, saved = checkpoints.restore_latest(setup.state_shapes)
      record = Record(**saved)
    else:
      state = setup.make_state()
    best = (state.params, state.stats)
    if checkpoints and record.best_step >= 0:
      best = checkpoints.restore_best(*best)
    first_step = int(state.step)
    if work_dir:
      processes.together(lambda: log_path and _cut_log(log_path, first_step))
    log = _Log(log_path, report if processes.is_first() else None)
    plan = _Plan(
      dataset,
      setup,
      open_eval_stream(dataset, 'valid', placement, config.valid_negatives),
      checkpoints,
      stack.enter_context(log),
      stack.enter_context(stop_signals()),
    )
    for note in setup.notes:
      plan.log.say(note)
    state, best = _run(plan, state, best, record)
  step = int(state.step)
  result = {
    'model': model_name,
    'version': eain_jax.__version__,
    'dataset': dataset.fingerprint,
    'seed': config.seed,
    'parameters': setup.num_parameters,
    'best_step': record.best_step,
    'best_epoch': record.best_step / plan.steps_per_epoch,
    'steps': step,
  }
  for name in ('valid', 'test'):
    stream = open_eval_stream(dataset, name, placement)
    scored = _score(setup.score_step, placement, stream, *best)
    result[name] = evaluator.evaluate_scores(dataset, scored)
  examples = step * setup.stream.num_requests * setup.stream.num_candidates
  result['seconds'] = record.seconds
  result['seconds_waiting_for_input'] = record.seconds_waiting
  result['examples_per_second'] = examples / max(record.seconds, 1e-9)
  if work_dir and processes.is_first():
    write_json(work_dir / RESULT_FILE, result)
  return FitResult(result, *best)


def open_eval_stream(
  dataset: Dataset,
  part_name: str,
  placement: Placement,
  max_negatives: int | None = None,
) -> EvalStream:
  """The evaluation batches of a part, cut for the devices of a run.

  All batches have one shape. Where tables are cut, finding it takes a pass over
  them, and the processes must agree on it.
  """
  stream = make_eval_stream(
    dataset, part_name, EVAL_BATCH_SIZE, max_negatives, placement.eval_shards
  )
  if not placement.cuts_tables:
    return stream
  own = stream.own_sizes()
  most = processes.gather(own.to_array()).max(axis=0)
  return dataclasses.replace(stream, at_least=own.from_array(most))


def _score(
  score_step: ScoreFn, placement: Placement, stream: EvalStream, params, stats
) -> evaluator.ScoredPart:
  """Every process' scores of every example of a part."""

  def score(batch):
    placed = placement.place_eval_batch(batch)
    return placement.own_logits(score_step(params, stats, placed))

  return evaluator.score_part(score, stream, processes.gather)


def evaluate(
  dataset: Dataset, part_name: str, score_step: ScoreFn, params, stats
) -> dict[str, Any]:
  """All metrics of a part, over all of its candidates, on one device."""
  scored = evaluator.score_part(
    lambda batch: score_step(params, stats, batch),
    make_eval_stream(dataset, part_name, EVAL_BATCH_SIZE),
  )
  return evaluator.evaluate_scores(dataset, scored)


def _schedule(plan: _Plan, step: int) -> Iterator[tuple[int, int]]:
  """(first step, count) of each call of the device, from `step` to the end.

  No call goes beyond a step at which the loop evaluates, saves or logs. Counts
  are powers of two, so that there are few programs.
  """
  config, per_epoch = plan.config, plan.steps_per_epoch
  while step < plan.setup.num_steps:
    free = min(
      every - step % every
      for every in (per_epoch, config.save_every, config.log_every)
    )
    count = 1
    if plan.setup.device_runner is not None:
      count = min(STEPS_A_CALL, 2 ** (free.bit_length() - 1))
    yield step, count
    step += count


class _Inputs:
  """What the devices need of the host for each call, made ahead.

  Of several processes the batches have the sizes that all agree on, and all are
  told alike to stop.

  Attributes:
    stops: the call that was asked for last is not to be made.
  """

  def __init__(self, plan: _Plan, step: int):
    self._setup, self._stop_asked = plan.setup, plan.stop_asked
    self.stops = False
    self._schedule = collections.deque(_schedule(plan, step))
    self._source = prefetch(self._make, list(self._schedule))
    self._agreed = None
    if plan.setup.placement.spans_processes and self._schedule:
      self._agreed = AgreedBatches(
        self._source, self._setup.stream.batch, step, self._stop_asked
      )

  def _make(self, call: tuple[int, int]) -> Any:
    first, count = call
    if self._setup.device_runner is None:
      return self._setup.stream.batch(first)
    return self._setup.device_runner.inputs(first, count)

  def __next__(self) -> tuple[int, Any]:
    """How many steps the next call makes, and what it takes."""
    _, count = self._schedule.popleft()
    batch = next(self._agreed or self._source)
    self.stops = self._agreed.stops if self._agreed else self._stop_asked()
    if self._setup.device_runner is None:
      batch = self._setup.placement.place_batch(batch)
    return count, batch

  def observe(self, metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a call without what they tell of later inputs."""
    if self._agreed:
      self._agreed.observe(metrics.pop('ahead'))
    return metrics

  def close(self) -> None:
    self._source.close()


def _run(plan: _Plan, state: TrainState, best, record: Record):
  """Runs to the last step, or until early stopping; the state and the best."""
  config, per_epoch = plan.config, plan.steps_per_epoch
  step = int(state.step)
  train = plan.setup.device_runner or plan.setup.train_step
  inputs = _Inputs(plan, step)
  pending: dict[str, Any] = {}
  in_flight = None
  clock = time.perf_counter()
  while True:
    at_boundary = step > 0 and step % per_epoch == 0
    if at_boundary and record.evaluated_step != step:
      jax.block_until_ready(state)
      record.seconds += time.perf_counter() - clock
      state, best = _evaluate_boundary(plan, state, best, record)
      clock = time.perf_counter()
    stop = (
      step >= plan.setup.num_steps
      or record.stale_evaluations >= config.early_stopping
    )
    due = at_boundary or step % config.save_every == 0
    if step > 0 and (due or stop):
      pending, clock = _save(plan, state, record, pending, clock)
    if stop:
      inputs.close()
      return state, best
    asked = time.perf_counter()
    count, batch = next(inputs)
    record.seconds_waiting += time.perf_counter() - asked
    if inputs.stops:
      inputs.close()
      _save(plan, state, record, pending, clock)
      raise Interrupted(f'told to stop before step {step}')
    state, metrics = train(state, batch)
    metrics = inputs.observe(metrics)
    step += count
    # One step runs and one waits: each has temporaries of its own.
    jax.block_until_ready(in_flight)
    if in_flight is None:
      release_freed_memory()
    in_flight = metrics
    if pending:
      # The step before is read while this one runs.
      _log_training(plan, record, pending)
      pending = {}
    if step % config.log_every == 0 or step % per_epoch == 0:
      pending = {'step': step, 'epoch': step / per_epoch, **metrics}
    if pending and step % per_epoch == 0:
      _log_training(plan, record, pending)
      pending = {}


def _save(
  plan: _Plan,
  state: TrainState,
  record: Record,
  pending: dict[str, Any],
  clock: float,
) -> tuple[dict[str, Any], float]:
  """Saves the state; what is still to be logged, and the clock, after that."""
  if plan.checkpoints is None or int(state.step) == 0:
    return pending, clock
  if pending:
    # A record of a step that is saved would not come again.
    _log_training(plan, record, pending)
  now = time.perf_counter()
  record.seconds += now - clock
  plan.checkpoints.save_latest(state, dataclasses.asdict(record))
  return {}, now


def _log_training(
  plan: _Plan, record: Record, pending: Mapping[str, Any]
) -> None:
  # A call of many steps has a value for each; the last is the step's.
  values = {
    name: float(np.asarray(value).reshape(-1)[-1])
    for name, value in pending.items()
  }
  step = int(pending['step'])
  if not math.isfinite(values['total_loss']):
    raise InputError(
      f'the loss is {values["total_loss"]} at step {step}: lower '
      '--learning_rate, or set --clip_norm'
    )
  waiting = {'seconds_waiting': record.seconds_waiting}
  plan.log(**{'kind': 'train', **values, 'step': step, **waiting})


def _evaluate_boundary(plan: _Plan, state: TrainState, best, record: Record):
  """Evaluates on validation; keeps the best; lets the learning rate fall."""
  config, step = plan.config, int(state.step)
  setup, params, stats = plan.setup, state.params, state.stats
  scored = _score(setup.score_step, setup.placement, plan.valid, params, stats)
  if not np.isfinite(scored.logit).all():
    raise InputError(
      f'the scores are not finite after step {step}: lower --learning_rate, '
      'or set --clip_norm'
    )
  values = evaluator.evaluate_scores(plan.dataset, scored)
  record.evaluated_step = step
  # Without one user of both classes there is no GAUC to select on.
  gauc = values['gauc'] if math.isfinite(values['gauc']) else values['auc']
  if not math.isfinite(gauc):
    raise InputError(
      'the validation part has examples of one class alone, so no model can '
      'be selected on it: prepare the dataset with another split'
    )
  if gauc > record.best_gauc:
    record.best_gauc, record.best_step = gauc, step
    record.stale_evaluations = record.stale_at_rate = 0
    # Copies: the step reuses the buffers of the state that it is given.
    best = jax.tree.map(lambda x: x.copy(), (params, stats))
    if plan.checkpoints:
      plan.checkpoints.save_best(step, *best)
  else:
    record.stale_evaluations += 1
    record.stale_at_rate += 1
    if record.stale_at_rate >= config.plateau_patience:
      record.plateau_factor *= config.plateau_factor
      record.stale_at_rate = 0
      opt_state = set_plateau_factor(state.opt_state, record.plateau_factor)
      state = dataclasses.replace(state, opt_state=opt_state)
  plan.log(
    kind='valid',
    step=step,
    epoch=step / plan.steps_per_epoch,
    learning_rate_factor=record.plateau_factor,
    seconds=record.seconds,
    **values,
  )
  return state, best
