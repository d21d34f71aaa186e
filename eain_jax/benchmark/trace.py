"""Which operations a step spends its time on, from a trace of the profiler.

Of several devices, too, how long their collectives take: what moves between
them, and the wait for the last one to come.
"""

import collections
import gzip
import json
import re
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from eain_jax.benchmark import collectives
from eain_jax.benchmark.measure import Batches
from eain_jax.benchmark.subject import Subject, signature
from eain_jax.errors import InputError

TRACED_CALLS = 5
NUM_OPERATIONS = 15

Event = Mapping[str, Any]


def operation_scopes(hlo: str) -> dict[str, str]:
  """Where in the model each operation of a compiled program comes from.

  Args:
    hlo: the program's text, in which names carry their `op_name`.
  """
  pattern = re.compile(
    r'^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]+)"', re.MULTILINE
  )
  return {name: scope for name, scope in pattern.findall(hlo)}


def collective_names(hlo: str) -> frozenset[str]:
  """Operations of a compiled program that are collectives, or part of one.

  Only its text tells which they are: 'psum.7' may be an all-reduce.
  """
  # After the shape, which may be a tuple, stands what the operation does.
  pattern = re.compile(
    r'^\s*(?:ROOT )?%?([\w.\-]+) = .*? ([a-z][a-z0-9\-]*)\(', re.MULTILINE
  )
  return frozenset(
    name
    for name, does in pattern.findall(hlo)
    if re.sub('-(start|update|done)$', '', does) in collectives.OPERATIONS
  )


def _operations(events: Iterable[Event]) -> Iterator[tuple[str, float]]:
  """Name and microseconds of every operation that ran, on any device."""
  events = list(events)
  threads = {
    (event['pid'], event['tid'])
    for event in events
    if event.get('name') == 'thread_name'
    and event['args']['name'].startswith('XLA Ops')
  }
  for event in events:
    name = event.get('args', {}).get('hlo_op')
    # Accelerators show an operation on several lines, and one has them all.
    is_shown = not threads or (event['pid'], event['tid']) in threads
    if name and is_shown and 'dur' in event:
      yield name, event['dur']


def sum_operations(
  events: Iterable[Event], scopes: Mapping[str, str], steps: int
) -> list[dict[str, Any]]:
  """The operations that took longest, over all threads.

  Args:
    events: of a Chrome trace; durations in microseconds.
    scopes: of `operation_scopes`.
    steps: that were traced.

  Returns:
    dicts of `name`, `scope`, `ms` a step, `share` of all operations' time and
    `runs` a step, the longest first. An operation that calls others counts
    their time too.
  """
  micros: dict[str, float] = collections.defaultdict(float)
  runs: collections.Counter = collections.Counter()
  for name, duration in _operations(events):
    micros[name] += duration
    runs[name] += 1
  total = sum(micros.values())
  longest = sorted(micros.items(), key=lambda item: item[1], reverse=True)
  return [
    {
      'name': name,
      'scope': scopes.get(name, ''),
      'ms': duration / 1e3 / steps,
      'share': duration / total,
      'runs': runs[name] / steps,
    }
    for name, duration in longest[:NUM_OPERATIONS]
  ]


def sum_collectives(
  events: Iterable[Event],
  names: Collection[str],
  steps: int,
  devices: int,
) -> float | None:
  """Milliseconds that collectives take a step, on average of the devices.

  Args:
    events: of a Chrome trace, of all devices; durations in microseconds.
    names: of `collective_names`.
    steps: that were traced.
    devices: that took part.

  Returns:
    0 where the program has no collective, and None where it has some but the
    trace shows none of them.
  """
  if not names:
    return 0.0
  found = [micros for name, micros in _operations(events) if name in names]
  return sum(found) / 1e3 / steps / devices if found else None


def trace_steps(
  subject: Subject, batches: Batches, folder: Path, *, of_python: bool = True
) -> tuple[list[Event], float]:
  """Traces some steps, all of the commonest program.

  Args:
    subject: whose steps they are.
    batches: that they take.
    folder: that the profile is written into.
    of_python: calls of Python are traced too, which slows a step down.

  Returns:
    the trace's events, and the seconds of all its steps.

  Raises:
    InputError: the profiler left no trace.
  """
  # Of another shape an operation may have another name.
  common = [b for b in batches.placed if signature(b) == batches.commonest]
  if not common:
    common = [subject.place(batches.by_signature[batches.commonest])]
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = int(of_python)
  with jax.profiler.trace(str(folder), profiler_options=options):
    start = time.perf_counter()
    for number in range(TRACED_CALLS):
      subject.run_to_end(common[number % len(common)])
    seconds = time.perf_counter() - start
  files = sorted(folder.rglob('*.trace.json.gz'))
  if not files:
    raise InputError(f'the profiler of this jax left no trace in {folder}')
  with gzip.open(files[-1], 'rt') as file:
    return json.load(file)['traceEvents'], seconds


def top_operations(
  subject: Subject, batches: Batches, folder: Path, hlo: str
) -> list[dict[str, Any]]:
  """Traces some steps into `folder` and lists what took longest."""
  events, _ = trace_steps(subject, batches, folder)
  steps = TRACED_CALLS * subject.steps_a_call
  return sum_operations(events, operation_scopes(hlo), steps)


def collective_time(
  subject: Subject, batches: Batches, hlo: str
) -> dict[str, float | None]:
  """What collectives take of a step, from a trace of some.

  Returns:
    `collective_ms`, see `sum_collectives`; `traced_step_ms` of those same
    steps, which the trace slows down; and `collective_share`, the one by the
    other. None: not measurable.
  """
  with tempfile.TemporaryDirectory() as folder:
    events, seconds = trace_steps(
      subject, batches, Path(folder), of_python=False
    )
  steps = TRACED_CALLS * subject.steps_a_call
  step_ms = 1e3 * seconds / steps
  collective_ms = sum_collectives(
    events, collective_names(hlo), steps, subject.num_devices
  )
  return {
    'collective_ms': collective_ms,
    'traced_step_ms': step_ms,
    'collective_share': (
      None if collective_ms is None else collective_ms / step_ms
    ),
  }
