"""Times finished steps: alone, and fed by the input pipeline.

`step` is what libraries compare: batches made and placed beforehand, each step
waited for. `end_to_end` is what training takes: batches from the pipeline, a
step queued while the one before it runs.
"""

import collections
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from eain_jax.benchmark import host
from eain_jax.benchmark.compilations import CompilationCounter
from eain_jax.benchmark.program import matmul_flops, xla_counts
from eain_jax.benchmark.subject import Subject, signature
from eain_jax.config import TimingConfig
from eain_jax.data.batches import prefetch
from eain_jax.training.memory import release_freed_memory

# Fed steps before the timed ones, at the least: batches that the pipeline made
# while programs were compiled are used up by then.
DRAIN_STEPS = 8


def num_fed_steps(config: TimingConfig) -> tuple[int, int]:
  """Untimed fed steps, and all of them."""
  untimed = max(config.warmup, DRAIN_STEPS)
  return untimed, untimed + config.steps


def summarize(
  seconds: Sequence[float], examples: Sequence[float], windows: int
) -> dict[str, float]:
  """Speed over windows of steps, and the quartiles of single steps.

  Args:
    seconds: of each step.
    examples: of each step.
    windows: the steps are cut into so many, in order.

  Returns:
    `ex_s`, `ex_s_min` and `ex_s_max`: median, slowest and fastest window,
    examples per second; `step_ms`, `step_ms_q1` and `step_ms_q3`: median and
    quartiles of the steps, milliseconds.
  """
  speed = [
    sum(part_examples) / sum(part_seconds)
    for part_seconds, part_examples in zip(
      np.array_split(seconds, windows),
      np.array_split(examples, windows),
      strict=True,
    )
  ]
  q1, median, q3 = np.percentile(seconds, (25, 50, 75))
  return {
    'ex_s': float(np.median(speed)),
    'ex_s_min': float(min(speed)),
    'ex_s_max': float(max(speed)),
    'step_ms': 1e3 * float(median),
    'step_ms_q1': 1e3 * float(q1),
    'step_ms_q3': 1e3 * float(q3),
  }


class _Clock:
  """Wall and CPU time of a block, of this process and of the others."""

  def __enter__(self) -> '_Clock':
    self._start = (
      time.perf_counter(),
      time.process_time(),
      host.others_seconds(),
    )
    return self

  def __exit__(self, *exc_info) -> None:
    wall, cpu, others = self._start
    self.wall = time.perf_counter() - wall
    self.cpu = time.process_time() - cpu
    others = (host.others_seconds() - others) / self.wall
    self.others = None if np.isnan(others) else max(0.0, others)


class Batches:
  """A subject's batches, made one by one on this thread, and timed.

  Attributes:
    placed: the first `batches` of them, on the devices; before anything runs,
      for a small array in the place of a large one makes a heap grow.
    by_signature: one batch of each static shape that the run will meet.
    commonest: the signature of most.
    examples_per_second: of assembling a batch, the median.
  """

  def __init__(self, subject: Subject, config: TimingConfig):
    first, self.by_signature, speed = [], {}, []
    times: collections.Counter = collections.Counter()
    for number in range(max(config.batches, num_fed_steps(config)[1])):
      start = time.perf_counter()
      batch = subject.batch(number)
      seconds = time.perf_counter() - start
      speed.append(subject.num_examples(number) / seconds)
      key = signature(batch)
      times[key] += 1
      self.by_signature.setdefault(key, batch)
      if number < config.batches:
        first.append(batch)
    self.placed = jax.block_until_ready([subject.place(b) for b in first])
    self.commonest = times.most_common(1)[0][0]
    self.examples_per_second = float(np.median(speed))


def compile_all(subject: Subject, batches: Batches) -> dict[str, Any]:
  """Runs the step once for every shape.

  Returns:
    `compile_s`: seconds until all have run; `compilations`.
  """
  with CompilationCounter() as counter:
    start = time.perf_counter()
    for batch in batches.by_signature.values():
      subject.run_to_end(subject.feed(batch))
    seconds = time.perf_counter() - start
  # To pmap a batch that is there already is another program.
  for batch in batches.by_signature.values():
    subject.run_to_end(subject.place(batch))
  release_freed_memory()
  return {'compile_s': seconds, 'compilations': counter.count}


def describe_program(
  subject: Subject, batches: Batches
) -> tuple[dict[str, Any], str]:
  """What the commonest shape's program asks for, and its text.

  It is compiled anew for that, so call it when memory has been measured.

  Returns:
    see `xla_counts`, with `matmul_flops` of a step; and the optimised HLO.
  """
  batch = subject.place(batches.by_signature[batches.commonest])
  arguments = subject.arguments(batch)
  static = tuple(n for n, x in enumerate(arguments) if isinstance(x, int))
  compiled = subject.step.lower(*arguments).compile()
  program = {
    **xla_counts(compiled),
    # A call of many steps is a loop, which counts as one turn.
    'matmul_flops': matmul_flops(
      subject.step, *arguments, static_argnums=static
    ),
  }
  return program, compiled.as_text()


def measure_step(
  subject: Subject, batches: Batches, config: TimingConfig
) -> dict[str, Any]:
  """Steps alone: see `summarize`, with `cpu_ms`, `others_cpu`, compilations."""
  placed = batches.placed
  for number in range(config.warmup):
    subject.run_to_end(placed[number % len(placed)])
  seconds, examples = [], []
  with CompilationCounter() as counter, _Clock() as clock:
    for number in range(config.steps):
      place = number % len(placed)
      start = time.perf_counter()
      subject.run_to_end(placed[place])
      seconds.append((time.perf_counter() - start) / subject.steps_a_call)
      examples.append(subject.num_examples(place) / subject.steps_a_call)
  return {
    **summarize(seconds, examples, config.repeats),
    'cpu_ms': 1e3 * clock.cpu / config.steps / subject.steps_a_call,
    'others_cpu': clock.others,
    'timed_compilations': counter.count,
  }


def _is_ready(outputs: Any) -> bool:
  return all(leaf.is_ready() for leaf in jax.tree.leaves(outputs))


def measure_end_to_end(
  subject: Subject, config: TimingConfig
) -> dict[str, Any]:
  """Steps fed by the input pipeline.

  One step is queued while the one before it runs, so the devices need never
  stand still. `input_wait_share` is the share of time spent waiting for a
  batch when no step was running any more by the time it came: at most so much
  could a faster pipeline gain.
  """
  untimed, total = num_fed_steps(config)
  source = prefetch(subject.batch, range(total))
  for _ in range(untimed):
    outputs = subject.run(subject.feed(next(source)))
  jax.block_until_ready(outputs)
  waited, finished = 0.0, []
  with CompilationCounter() as counter, _Clock() as clock:
    begin = time.perf_counter()
    previous = None
    for batch_number in range(config.steps):
      start = time.perf_counter()
      batch = next(source)
      if previous is None or _is_ready(previous):
        waited += time.perf_counter() - start
      outputs = subject.run(subject.feed(batch))
      if batch_number:
        jax.block_until_ready(previous)
        finished.append(time.perf_counter())
      previous = outputs
    jax.block_until_ready(previous)
    finished.append(time.perf_counter())
  source.close()
  calls = subject.steps_a_call
  examples = [subject.num_examples(n) / calls for n in range(untimed, total)]
  seconds = np.diff([begin, *finished]) / calls
  return {
    **summarize(seconds.tolist(), examples, config.repeats),
    'cpu_ms': 1e3 * clock.cpu / config.steps / subject.steps_a_call,
    'others_cpu': clock.others,
    'input_wait_share': waited / clock.wall,
    'timed_compilations': counter.count,
  }


def shares_of_ceilings(
  row: Mapping[str, Any],
  ceilings: Mapping[str, float],
  dtype: str,
  are_virtual: bool = False,
) -> dict[str, float | None]:
  """What a row's steps reach of what its devices can do; None: unknown.

  Bytes are XLA's count, in which a buffer that a cache holds counts each time
  it is read, so the share of memory can pass 1. They are those of one device.

  Args:
    row: with `step_ms`, `program` and `devices`.
    ceilings: of one device.
    dtype: of the matrix products.
    are_virtual: the devices share one machine, and its ceilings.
  """
  seconds, program = row['step_ms'] / 1e3, row['program']
  accessed = program['bytes_accessed']
  machines = row['devices']
  if are_virtual:
    machines, accessed = 1, accessed and accessed * row['devices']

  def share(amount, ceiling):
    if amount is None or ceiling is None:
      return None
    return amount / seconds / ceiling

  products = ceilings.get(f'matmul_{dtype}')
  return {
    'share_of_matmul_ceiling': share(
      program['matmul_flops'], products and products * machines
    ),
    'share_of_memory_ceiling': share(accessed, ceilings.get('memory')),
  }
