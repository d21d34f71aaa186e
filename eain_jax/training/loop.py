"""The loop: evaluate, save, next batch, step, log; do not change the order.

The state at the top of the loop is the state before batch `step`. What the
loop itself remembers (best so far, counters) is saved with the state, and the
log is cut back to the restored step, so a run that is started again goes on as
if it had never stopped.
"""

import contextlib
import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import eain_jax
from eain_jax.artifacts import write_json
from eain_jax.config import ModelConfig, TrainConfig
from eain_jax.data.batches import (
  EvalStream,
  TrainStream,
  make_eval_stream,
  prefetch,
)
from eain_jax.data.dataset import Dataset
from eain_jax.errors import InputError
from eain_jax.evaluation import evaluator
from eain_jax.training import parallel
from eain_jax.training.checkpoint import Checkpoints
from eain_jax.training.device_data import STEPS_A_CALL, DeviceRunner
from eain_jax.training.memory import release_freed_memory
from eain_jax.training.optimizer import set_plateau_factor
from eain_jax.training.setup import resolve_config, set_up
from eain_jax.training.state import TrainState, num_parameters
from eain_jax.training.step import ScoreFn, StepFn

EVAL_BATCH_SIZE = 16_384
CONFIG_FILE, METRICS_FILE, RESULT_FILE = (
  'config.json',
  'metrics.jsonl',
  'result.json',
)
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
  # The folder of the dataset may move; its fingerprint may not change.
  old, new = flat(found), flat(expected)
  for name in sorted((old.keys() | new.keys()) - {'dataset.path'}):
    if old.get(name) != new.get(name):
      raise InputError(
        f'{path.parent} holds a run with {name}={old.get(name)!r}, this one '
        f'has {new.get(name)!r}: name another --work_dir, or the same settings'
      )


def _cut_log(path: Path, step: int) -> None:
  """Keeps the records up to a step: what comes later will come again."""
  if path.is_file():
    records = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [r for r in records if r['step'] <= step]
    path.write_text(''.join(json.dumps(r) + '\n' for r in kept))


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
  """Makes a run's folder, or checks that it holds this very run."""
  work_dir.mkdir(parents=True, exist_ok=True)
  if (work_dir / CONFIG_FILE).is_file():
    _check_same_run(work_dir / CONFIG_FILE, settings)
  elif any(work_dir.iterdir()):
    raise InputError(
      f'--work_dir={work_dir} holds something that is not a run: name another '
      'folder'
    )
  write_json(work_dir / CONFIG_FILE, settings)


def _single_device(tree):
  """The tree on the first device: a view where all devices hold the same."""
  return jax.tree.map(lambda x: x.addressable_data(0), tree)


@dataclasses.dataclass(frozen=True)
class FitResult:
  """What a run came to.

  Attributes:
    result: the content of `result.json`.
    params: of the best evaluation.
    stats: of the best evaluation.
  """

  result: dict[str, Any]
  params: Any
  stats: Any


@dataclasses.dataclass(frozen=True)
class _Plan:
  """All that the loop uses and does not change."""

  dataset: Dataset
  config: TrainConfig
  stream: TrainStream
  valid: EvalStream
  num_steps: int
  train_step: StepFn
  score_step: ScoreFn
  device_runner: DeviceRunner | None
  checkpoints: Checkpoints | None
  log: _Log


def fit(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  config: TrainConfig,
  work_dir: Path | None = None,
  report: Report | None = None,
) -> FitResult:
  """Trains a model to its best validation GAUC and evaluates that on test.

  Args:
    dataset: an open dataset.
    model_name: of `models.MODELS`.
    model_config: its settings.
    config: how to train.
    work_dir: keeps config, metrics, checkpoints and result; a run that was
      interrupted there goes on. None: nothing is kept.
    report: is called with every record of the log.

  Raises:
    InputError: the folder holds another run; the batch does not suit the
      devices; the loss is not finite.
  """
  setup = set_up(dataset, model_name, model_config, config)
  config, stream, state = setup.config, setup.stream, setup.state
  settings = run_config(dataset, model_name, model_config, config)
  record, best = Record(), (state.params, state.stats)
  with contextlib.ExitStack() as stack:
    checkpoints, log_path = None, None
    if work_dir:
      _claim_folder(work_dir, settings)
      checkpoints = stack.enter_context(Checkpoints(work_dir))
      if checkpoints.latest_step is not None:
        state, saved = checkpoints.restore_latest(state)
        record = Record(**saved)
      if record.best_step >= 0:
        best = checkpoints.restore_best(*best)
      log_path = work_dir / METRICS_FILE
      _cut_log(log_path, int(state.step))
    plan = _Plan(
      dataset,
      config,
      stream,
      make_eval_stream(
        dataset, 'valid', EVAL_BATCH_SIZE, config.valid_negatives
      ),
      setup.num_steps,
      setup.train_step,
      setup.score_step,
      setup.device_runner,
      checkpoints,
      stack.enter_context(_Log(log_path, report)),
    )
    state = parallel.place_state(state, config.parallelism, stream.num_shards)
    for note in setup.notes:
      plan.log.say(note)
    state, best = _run(plan, state, best, record)
  step = int(state.step)
  result = {
    'model': model_name,
    'version': eain_jax.__version__,
    'dataset': dataset.fingerprint,
    'seed': config.seed,
    'parameters': num_parameters(state.params),
    'best_step': record.best_step,
    'best_epoch': record.best_step / stream.steps_per_epoch,
    'steps': step,
  }
  for name in ('valid', 'test'):
    result[name] = evaluate(dataset, name, plan.score_step, *best)
  examples = step * stream.num_requests * stream.num_candidates
  result['seconds'] = record.seconds
  result['seconds_waiting_for_input'] = record.seconds_waiting
  result['examples_per_second'] = examples / max(record.seconds, 1e-9)
  if work_dir:
    write_json(work_dir / RESULT_FILE, result)
  return FitResult(result, *best)


def evaluate(
  dataset: Dataset, part_name: str, score_step: ScoreFn, params, stats
) -> dict[str, Any]:
  """All metrics of a part, over all of its candidates."""
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
  config, per_epoch = plan.config, plan.stream.steps_per_epoch
  while step < plan.num_steps:
    free = min(
      every - step % every
      for every in (per_epoch, config.save_every, config.log_every)
    )
    count = 1
    if plan.device_runner is not None:
      count = min(STEPS_A_CALL, 2 ** (free.bit_length() - 1))
    yield step, count
    step += count


def _inputs(plan: _Plan, call: tuple[int, int]) -> tuple[int, Any]:
  """How many steps a call makes, and what it needs from the host."""
  first, count = call
  if plan.device_runner is None:
    return count, plan.stream.batch(first)
  return count, plan.device_runner.inputs(first, count)


def _run(plan: _Plan, state: TrainState, best, record: Record):
  """Runs to the last step, or until early stopping; the state and the best."""
  config, per_epoch = plan.config, plan.stream.steps_per_epoch
  step = int(state.step)
  train = plan.device_runner or plan.train_step
  inputs = prefetch(functools.partial(_inputs, plan), _schedule(plan, step))
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
      step >= plan.num_steps
      or record.stale_evaluations >= config.early_stopping
    )
    due = at_boundary or step % config.save_every == 0
    if plan.checkpoints and step > 0 and (due or stop):
      if pending:
        # A record of a step that is saved would not come again.
        _log_training(plan, record, pending)
        pending = {}
      now = time.perf_counter()
      record.seconds, clock = record.seconds + now - clock, now
      plan.checkpoints.save_latest(
        _single_device(state), dataclasses.asdict(record)
      )
    if stop:
      inputs.close()
      return state, best
    asked = time.perf_counter()
    count, batch = next(inputs)
    record.seconds_waiting += time.perf_counter() - asked
    state, metrics = train(state, batch)
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
  params, stats = _single_device((state.params, state.stats))
  scored = evaluator.score_part(
    lambda batch: plan.score_step(params, stats, batch), plan.valid
  )
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
    epoch=step / plan.stream.steps_per_epoch,
    learning_rate_factor=record.plateau_factor,
    seconds=record.seconds,
    **values,
  )
  return state, best
