"""The loop: evaluate, save, next batch, step, log; do not change the order.

The state at the top of the loop is the state before batch `step`. What the
loop itself remembers (best so far, counters) and the log so far are saved with
the state, so a run that is started again goes on as if it had never stopped.
"""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

import eain_jax
from eain_jax.artifacts import write_json, write_manifest
from eain_jax.config import ModelConfig, TrainConfig
from eain_jax.data.batches import EvalStream, make_eval_stream, prefetch
from eain_jax.data.dataset import Dataset
from eain_jax.data.skip_above import with_skip_above
from eain_jax.errors import BadSettings, InputError, Interrupted
from eain_jax.evaluation import evaluator
from eain_jax.locking import locked_folder
from eain_jax.stopping import Stop, stop_signals
from eain_jax.training import processes
from eain_jax.training.agreement import AgreedBatches
from eain_jax.training.checkpoint import Checkpoints
from eain_jax.training.checksums import not_finite_error, take_checksums
from eain_jax.training.device_data import STEPS_A_CALL
from eain_jax.training.device_memory import check_memory, is_out_of_memory
from eain_jax.training.memory import release_freed_memory
from eain_jax.training.optimizer import evaluated_params, set_plateau_factor
from eain_jax.training.profile import Profile
from eain_jax.training.run_folder import (
  CONFIG_FILE,
  METRICS_FILE,
  RESULT_FILE,
  check_shared,
  claim_folder,
  settings_of,
)
from eain_jax.training.run_log import Report, RunLog
from eain_jax.training.save_pace import SavePace, saving_share
from eain_jax.training.setup import Setup, resolve_config, set_up
from eain_jax.training.state import TrainState
from eain_jax.training.step import ScoreFn

EVAL_BATCH_SIZE = 16_384
# Several processes ask each other whether to stop, once in so many batches.
EVAL_BATCHES_A_MEETING = 16

# Parameters and statistics.
Best = tuple[Any, Any]


@dataclasses.dataclass
class Record:
  """What the loop remembers beside the state.

  Attributes:
    best_value: of all evaluations so far, of GAUC, or AUC as `selects_by` has
      it.
    best_step: its step.
    stale_evaluations: since the best.
    stale_at_rate: since the best, or since the learning rate fell.
    plateau_factor: on the learning rate.
    evaluated_step: the last step that was evaluated.
    saved: step and evaluated step of the checkpoint that it went into last.
    seconds: training time so far, without evaluations.
    seconds_waiting: of these, for the input.
    together: the most runs that shared these seconds, this one included.
  """

  best_value: float = -math.inf
  best_step: int = -1
  stale_evaluations: int = 0
  stale_at_rate: int = 0
  plateau_factor: float = 1.0
  evaluated_step: int = 0
  saved: tuple[int, int] = (0, 0)
  seconds: float = 0.0
  seconds_waiting: float = 0.0
  together: int = 1


def run_config(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  config: TrainConfig,
) -> dict[str, Any]:
  """What identifies a run; written as `config.json`."""
  trained_on = with_skip_above(dataset, config.skip_above)
  config = resolve_config(trained_on, model_name, model_config, config)
  return settings_of(dataset, model_name, model_config, config)


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
  model_name: str
  setup: Setup
  valid: EvalStream
  checkpoints: Checkpoints | None
  log: RunLog
  profile: Profile
  stop: Stop
  pace: SavePace
  num_together: int

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
  parts: Sequence[str] = ('valid', 'test'),
  profile_dir: Path | None = None,
) -> FitResult:
  """Trains a model to its best epoch on validation and evaluates that.

  By GAUC, or by AUC: see `evaluator.selects_by`.

  With several processes all call it; the first one alone writes and reports.

  Args:
    dataset: an open dataset.
    model_name: of `models.MODELS`.
    model_config: its settings.
    config: how to train.
    work_dir: keeps config, metrics, checkpoints and result; a run that was
      interrupted there goes on. None: nothing is kept.
    report: is called with every record of the log; what it raises ends the run.
    parts: what the result has the metrics of. A search leaves 'test' out.
    profile_dir: some steps are traced into it; see `profile`. The first process
      alone does.

  Raises:
    InputError: the folder holds another run; the batch or the state does not
      suit the devices; the loss is not finite.
    Interrupted: SIGTERM or SIGINT came; the state is saved in `work_dir`.
  """
  given = dataset
  with stop_signals() as stop:
    dataset = processes.together(
      lambda: with_skip_above(given, config.skip_above)
    )
    setup = processes.together(
      lambda: set_up(dataset, model_name, model_config, config)
    )
    setup.placement.meet()
    processes.together(
      lambda: check_memory(
        setup.state_shapes, setup.placement, saves=work_dir is not None
      )
    )
    return fit_set_up(
      dataset,
      model_name,
      model_config,
      setup,
      stop,
      work_dir,
      report,
      parts,
      profile_dir,
    )


def fit_set_up(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  setup: Setup,
  stop: Stop,
  work_dir: Path | None = None,
  report: Report | None = None,
  parts: Sequence[str] = ('valid', 'test'),
  profile_dir: Path | None = None,
  num_together: int = 1,
) -> FitResult:
  """As `fit`, of what is set up.

  Args:
    dataset: as it is trained on, with Skip Above or without.
    model_name: as of `fit`.
    model_config: as of `fit`.
    setup: of these.
    stop: tells it to end.
    work_dir: as of `fit`.
    report: as of `fit`.
    parts: as of `fit`.
    profile_dir: as of `fit`.
    num_together: runs that wait for each other at every step, this one
      included.

  Raises:
    InputError, Interrupted: as `fit`.
  """
  placement, config = setup.placement, setup.config
  with contextlib.ExitStack() as stack:
    if work_dir:
      settings = settings_of(dataset, model_name, model_config, setup.config)
      _claim(stack, work_dir, settings)
      checkpoints = stack.enter_context(
        Checkpoints(work_dir, placement, settings)
      )
      check_shared(work_dir, checkpoints.numbers())
    else:
      checkpoints = None
    is_first = processes.is_first()
    log = stack.enter_context(
      RunLog(work_dir if is_first else None, report if is_first else None)
    )
    state, best, record = _begin(setup, checkpoints, work_dir, log)
    plan = _Plan(
      dataset,
      model_name,
      setup,
      open_eval_stream(dataset, 'valid', setup, config.valid_negatives),
      checkpoints,
      log,
      Profile(profile_dir if is_first else None, log.say),
      stop,
      SavePace(saving_share(num_together)),
      num_together,
    )
    for note in setup.notes:
      log.say(note)
    inputs = stack.enter_context(
      contextlib.closing(_Inputs(plan, int(state.step)))
    )
    with stop.held(), stop.may_end(), plan.profile, _memory_told(plan):
      state, best = _run(plan, inputs, state, best, record)
    if setup.device_runner is not None:
      setup.device_runner.leave()
    assert best is not None, 'every run ends at an evaluation'
    result = _result(plan, best, record, int(state.step), parts)
    if work_dir and is_first:
      write_json(work_dir / RESULT_FILE, result)
      write_manifest(work_dir, (CONFIG_FILE, METRICS_FILE, RESULT_FILE))
  return FitResult(result, *best)


@contextlib.contextmanager
def _memory_told(plan: _Plan) -> Iterator[None]:
  """What the batches need beside the state is known when it is not there."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if not is_out_of_memory(error):
      raise
    reason = 'the run does not fit into the memory of its device'
    advice = 'lower --batch_size, or make the model smaller, in another folder'
    if plan.num_together > 1:
      reason = f'{plan.num_together} runs do not fit into the memory together'
      advice = 'use --seeds_at_once=1'
    if jax.default_backend() == 'cpu':
      # Which others use too: it may fit another time.
      raise InputError(f'{reason}: {advice}') from error
    raise BadSettings(reason, advice) from error


def _claim(
  stack: contextlib.ExitStack, work_dir: Path, settings: Mapping[str, Any]
) -> None:
  """Locks a run's folder until `stack` is left, and makes sure that it is."""

  def claim() -> None:
    if processes.is_first():
      stack.enter_context(locked_folder(work_dir, '--work_dir'))
    claim_folder(work_dir, settings)

  processes.first_then_others(claim)


def _begin(
  setup: Setup,
  checkpoints: Checkpoints | None,
  work_dir: Path | None,
  log: RunLog,
) -> tuple[TrainState, Best | None, Record]:
  """The state, the best so far and the record to go on from, or new ones."""
  unit = checkpoints and checkpoints.restore(setup.state_shapes, log.warn)
  if unit:
    processes.together(lambda: log.begin(unit.log))
    record = Record(**unit.loop)
    record.saved = (int(unit.state.step), record.evaluated_step)
    return unit.state, unit.best, record
  if work_dir:
    between = min(setup.config.save_period, setup.stream.steps_per_epoch)
    processes.together(lambda: log.check_new(between))
  processes.together(lambda: log.begin(''))
  return setup.make_state(), None, Record()


def _result(
  plan: _Plan, best: Best, record: Record, step: int, parts: Sequence[str]
) -> dict[str, Any]:
  """The content of `result.json`."""
  setup, dataset = plan.setup, plan.dataset
  result = {
    'model': plan.model_name,
    'version': eain_jax.__version__,
    'dataset': dataset.fingerprint,
    'task': dataset.task,
    'split': dataset.manifest['split'],
    'seed': setup.config.seed,
    'parameters': setup.num_parameters,
    'best_step': record.best_step,
    'best_epoch': record.best_step / plan.steps_per_epoch,
    'steps': step,
    'trained_together': record.together,
  }
  for name in parts:
    stream = open_eval_stream(dataset, name, setup)
    scored = _score(plan, stream, *best)
    result[name] = evaluator.evaluate_scores(dataset, scored)
    if name == 'valid':
      result['selected_by'] = evaluator.selects_by(result['valid'])
    if name == 'test':
      result['reliability'] = evaluator.reliability(dataset, scored)
  # Every run ends with an epoch.
  of_epoch = dataset.manifest['counts']['train']['examples']
  examples = of_epoch * step // setup.stream.steps_per_epoch
  result['seconds'] = record.seconds
  result['seconds_waiting_for_input'] = record.seconds_waiting
  result['examples_per_second'] = examples / max(record.seconds, 1e-9)
  return result


def open_eval_stream(
  dataset: Dataset,
  part_name: str,
  setup: Setup,
  max_negatives: int | None = None,
) -> EvalStream:
  """The evaluation batches of a part, cut for the devices of a run.

  All batches have one shape. Where tables are cut, finding it takes a pass over
  them, and the processes must agree on it.
  """
  placement = setup.placement
  stream = make_eval_stream(
    dataset,
    part_name,
    EVAL_BATCH_SIZE,
    max_negatives,
    placement.eval_shards,
    setup.stream.packer.features,
  )
  if not placement.cuts_tables:
    return stream
  own = stream.own_sizes()
  most = processes.gather(own.to_array()).max(axis=0)
  return dataclasses.replace(stream, at_least=own.from_array(most))


def _score(
  plan: _Plan, stream: EvalStream, params, stats
) -> evaluator.ScoredPart:
  """Every process' scores of every example of a part.

  Raises:
    Interrupted: a process was told to stop; all raise it before one batch.
  """
  placement, num_scored = plan.setup.placement, 0

  def score(batch):
    nonlocal num_scored
    if not placement.spans_processes:
      plan.stop.check()
    elif (
      num_scored % EVAL_BATCHES_A_MEETING == 0
      and processes.gather(np.array(plan.stop.asked)).any()
    ):
      raise Interrupted('told to stop')
    num_scored += 1
    placed = placement.place_eval_batch(batch)
    return placement.own_logits(plan.setup.score_step(params, stats, placed))

  return evaluator.score_part(
    score,
    stream,
    processes.gather,
    timeout=plan.config.input_timeout,
    while_waiting=None if placement.spans_processes else plan.stop.check,
  )


def evaluate(
  dataset: Dataset, part_name: str, score_step: ScoreFn, params, stats
) -> dict[str, Any]:
  """All metrics of a part, over all of its candidates, on one device.

  Raises:
    InputError: the part has no candidates to rank.
  """
  if (
    dataset.task == 'next_item' and dataset.parts[part_name].candidates is None
  ):
    raise InputError(
      f'the {part_name} part has no negatives, for they are drawn while a '
      'model is trained: name another part'
    )
  scored = evaluator.score_part(
    lambda batch: score_step(params, stats, batch),
    make_eval_stream(dataset, part_name, EVAL_BATCH_SIZE),
  )
  return evaluator.evaluate_scores(dataset, scored)


def _schedule(plan: _Plan, step: int) -> Iterator[tuple[int, int]]:
  """(first step, count) of each call of the device, from `step` to the end.

  No call goes beyond a step at which the loop evaluates, saves or logs.
  """
  config, per_epoch = plan.config, plan.steps_per_epoch
  while step < plan.setup.num_steps:
    free = min(
      every - step % every
      for every in (per_epoch, config.save_period, config.log_every)
    )
    count = 1
    if plan.setup.device_runner is not None:
      count = min(STEPS_A_CALL, free)
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
    self._setup, self._stop = plan.setup, plan.stop
    self.stops = False
    self._schedule = collections.deque(_schedule(plan, step))
    self._agreed = None
    is_alone = not plan.setup.placement.spans_processes
    self._source = prefetch(
      self._make,
      list(self._schedule),
      timeout=plan.config.input_timeout,
      while_waiting=plan.stop.check if is_alone else None,
    )
    if not is_alone and self._schedule:
      self._agreed = AgreedBatches(
        self._source,
        self._setup.stream.batch,
        step,
        lambda: self._stop.asked,
      )

  def _make(self, call: tuple[int, int]) -> Any:
    first, count = call
    if self._setup.device_runner is None:
      return self._setup.stream.batch(first)
    return self._setup.device_runner.inputs(first, count)

  def __next__(self) -> tuple[int, Any]:
    """How many steps the next call makes, and what it takes."""
    _, count = self._schedule.popleft()
    try:
      batch = next(self._agreed or self._source)
    except Interrupted:
      self.stops = True
      return count, None
    self.stops = self._agreed.stops if self._agreed else self._stop.asked
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


def _run(
  plan: _Plan,
  inputs: _Inputs,
  state: TrainState,
  best: Best | None,
  record: Record,
) -> tuple[TrainState, Best | None]:
  """Runs to the last step, or until early stopping; the state and the best."""
  config, per_epoch = plan.config, plan.steps_per_epoch
  step = int(state.step)
  train = plan.setup.device_runner or plan.setup.train_step
  pending: dict[str, Any] = {}
  in_flight = None
  clock = time.perf_counter()
  while True:
    at_boundary = step > 0 and step % per_epoch == 0
    if at_boundary and record.evaluated_step != step:
      jax.block_until_ready(state)
      _add_time(record, clock)
      plan.profile.end()
      try:
        state, best = _evaluate_boundary(plan, state, best, record)
      except (Interrupted, jax.errors.JaxRuntimeError) as error:
        if not _is_interruption(plan, state, error):
          raise
        inputs.close()
        _end_early(plan, state, best, record, pending, time.perf_counter())
      clock = time.perf_counter()
    stop = (
      step >= plan.setup.num_steps
      or record.stale_evaluations >= config.early_stopping
    )
    due = at_boundary or step % config.save_period == 0
    # Several processes save together or not at all, and have not one clock.
    may_wait = not (stop or plan.setup.placement.spans_processes)
    if may_wait and not plan.pace.allows(time.perf_counter()):
      due = False
    if step > 0 and (due or stop):
      pending, clock = _save(plan, state, best, record, pending, clock)
    if stop:
      inputs.close()
      if plan.checkpoints:
        plan.checkpoints.wait()
      return state, best
    if plan.profile.turns:
      jax.block_until_ready(state)
      _add_time(record, clock)
      plan.profile.turn()
      clock = time.perf_counter()
    with plan.profile.call(step):
      asked = time.perf_counter()
      with jax.profiler.TraceAnnotation('wait for input'):
        count, batch = next(inputs)
      record.seconds_waiting += time.perf_counter() - asked
      if inputs.stops:
        inputs.close()
        _end_early(plan, state, best, record, pending, clock)
      try:
        state, metrics = train(state, batch)
      except jax.errors.JaxRuntimeError as error:
        if not _is_interruption(plan, state, error):
          raise
        inputs.close()
        _end_early(plan, state, best, record, pending, clock)
    plan.stop.can_end = False
    record.together = max(record.together, plan.num_together)
    metrics = inputs.observe(metrics)
    step += count
    # One step runs and one waits: each has temporaries of its own.
    jax.block_until_ready(in_flight)
    if in_flight is None:
      release_freed_memory()
    in_flight = metrics
    if plan.checkpoints:
      plan.checkpoints.check()
    if pending:
      # The step before is read while this one runs.
      clock = _add_time(record, clock)
      _log_training(plan, state, record, pending)
      pending = {}
    if step % config.log_every == 0 or step % per_epoch == 0:
      pending = {'step': step, 'epoch': step / per_epoch, **metrics}
    if pending and step % per_epoch == 0:
      jax.block_until_ready(state)
      clock = _add_time(record, clock)
      _log_training(plan, state, record, pending)
      pending = {}


def _is_interruption(
  plan: _Plan, state: TrainState, error: BaseException
) -> bool:
  """Whether a run can save its state and end in order after an error.

  Ctrl-C reaches the assembler of a GPU's programs too, which is a process of
  its own: compiling fails then, before anything has run.
  """
  if isinstance(error, Interrupted):
    return True
  is_alone = not plan.setup.placement.spans_processes
  return is_alone and plan.stop.asked and not state.step.is_deleted()


def _add_time(record: Record, clock: float) -> float:
  """Adds the time since `clock` to the training time; the clock now."""
  now = time.perf_counter()
  record.seconds += now - clock
  return now


def _end_early(
  plan: _Plan,
  state: TrainState,
  best: Best | None,
  record: Record,
  pending: dict[str, Any],
  clock: float,
) -> NoReturn:
  """Saves the state, if there is somewhere to, and raises Interrupted."""
  _save(plan, state, best, record, pending, clock)
  if plan.checkpoints:
    plan.checkpoints.wait()
  raise Interrupted(f'told to stop before step {int(state.step)}')


def _save(
  plan: _Plan,
  state: TrainState,
  best: Best | None,
  record: Record,
  pending: dict[str, Any],
  clock: float,
) -> tuple[dict[str, Any], float]:
  """Saves the state; what is still to be logged, and the clock, after that."""
  position = (int(state.step), record.evaluated_step)
  if plan.checkpoints is None or position in ((0, 0), record.saved):
    return pending, clock
  clock = _add_time(record, clock)
  if pending:
    # A record of a step that is saved would not come again.
    _log_training(plan, state, record, pending)
  is_first = record.saved == (0, 0)
  record.saved = position
  if plan.pace.holds:
    # The steps that are still under way are no part of what a save takes.
    jax.block_until_ready(state)
    clock = _add_time(record, clock)
  plan.checkpoints.save(
    state, best, dataclasses.asdict(record), plan.log.text()
  )
  if is_first and plan.pace.holds:
    # Many steps may follow before the next one, and without any checkpoint a
    # log of many steps looks like a run that has lost its own.
    plan.checkpoints.wait()
  plan.pace.saved(clock, time.perf_counter())
  return {}, clock


def _log_training(
  plan: _Plan, state: TrainState, record: Record, pending: Mapping[str, Any]
) -> None:
  values = {name: float(np.asarray(value)) for name, value in pending.items()}
  step = int(pending['step'])
  if not math.isfinite(values['total_loss']):
    seen = f'the loss is {values["total_loss"]} at step {step}'
    raise _not_finite(plan, seen, state)
  _log(plan, record, kind='train', **{**values, 'step': step})


def _not_finite(plan: _Plan, seen: str, state: TrainState) -> BadSettings:
  """What was seen, and the first layer that has come apart."""
  placement = plan.setup.placement
  jax.block_until_ready(state)
  checksums = take_checksums(placement.to_canonical(state), placement.num_rows)
  return not_finite_error(checksums, seen)


def _log(plan: _Plan, record: Record, **values: Any) -> None:
  plan.log(
    **values, seconds=record.seconds, seconds_waiting=record.seconds_waiting
  )


def _evaluate_boundary(
  plan: _Plan, state: TrainState, best: Best | None, record: Record
) -> tuple[TrainState, Best]:
  """Evaluates on validation; keeps the best; lets the learning rate fall."""
  config, step = plan.config, int(state.step)
  params, stats = evaluated_params(state), state.stats
  scored = _score(plan, plan.valid, params, stats)
  if not np.isfinite(scored.logit).all():
    raise _not_finite(plan, f'scores are not finite after step {step}', state)
  values = evaluator.evaluate_scores(plan.dataset, scored)
  plan.stop.can_end = False  # There is something to save.
  record.evaluated_step = step
  chosen_by = values[evaluator.selects_by(values)]
  if not math.isfinite(chosen_by):
    raise InputError(
      'the validation part has examples of one class alone, so no model can '
      'be selected on it: prepare the dataset with another split'
    )
  if chosen_by > record.best_value:
    record.best_value, record.best_step = chosen_by, step
    record.stale_evaluations = record.stale_at_rate = 0
    # Copies: the step reuses the buffers of the state that it is given.
    best = jax.tree.map(lambda x: x.copy(), (params, stats))
  else:
    record.stale_evaluations += 1
    record.stale_at_rate += 1
    if record.stale_at_rate >= config.plateau_patience:
      record.plateau_factor *= config.plateau_factor
      record.stale_at_rate = 0
      opt_state = set_plateau_factor(state.opt_state, record.plateau_factor)
      state = dataclasses.replace(state, opt_state=opt_state)
  _log(
    plan,
    record,
    kind='valid',
    step=step,
    epoch=step / plan.steps_per_epoch,
    learning_rate_factor=record.plateau_factor,
    **values,
  )
  assert best is not None, 'the first evaluation is the best so far'
  return state, best
