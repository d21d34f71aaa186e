"""Which operations a step spends its time on, from a trace of the profiler."""

import collections
import gzip
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from eain_jax.benchmark.measure import Batches
from eain_jax.benchmark.subject import Subject
from eain_jax.errors import InputError

TRACED_CALLS = 5
NUM_OPERATIONS = 15


def operation_scopes(hlo: str) -> dict[str, str]:
  """Where in the model each operation of a compiled program comes from.

  Args:
    hlo: the program's text, in which names carry their `op_name`.
  """
  pattern = re.compile(
    r'^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]+)"', re.MULTILINE
  )
  return {name: scope for name, scope in pattern.findall(hlo)}


def sum_operations(
  events: Iterable[Mapping[str, Any]], scopes: Mapping[str, str], steps: int
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
  events = list(events)
  threads = {
    (event['pid'], event['tid'])
    for event in events
    if event.get('name') == 'thread_name'
    and event['args']['name'].startswith('XLA Ops')
  }
  micros: collections.Counter = collections.Counter()
  runs: collections.Counter = collections.Counter()
  for event in events:
    name = event.get('args', {}).get('hlo_op')
    # Accelerators show an operation on several lines, and one has them all.
    is_shown = not threads or (event['pid'], event['tid']) in threads
    if name and is_shown and 'dur' in event:
      micros[name] += event['dur']
      runs[name] += 1
  total = sum(micros.values())
  return [
    {
      'name': name,
      'scope': scopes.get(name, ''),
      'ms': duration / 1e3 / steps,
      'share': duration / total,
      'runs': runs[name] / steps,
    }
    for name, duration in micros.most_common(NUM_OPERATIONS)
  ]


def top_operations(
  subject: Subject, batches: Batches, folder: Path, hlo: str
) -> list[dict[str, Any]]:
  """Traces some steps into `folder` and lists what took longest.

  Raises:
    InputError: the profiler left no trace.
  """
  placed = batches.placed
  with jax.profiler.trace(str(folder)):
    for number in range(TRACED_CALLS):
      subject.run_to_end(placed[number % len(placed)])
  files = sorted(folder.rglob('*.trace.json.gz'))
  if not files:
    raise InputError(f'the profiler of this jax left no trace in {folder}')
  with gzip.open(files[-1], 'rt') as file:
    events = json.load(file)['traceEvents']
  steps = TRACED_CALLS * subject.steps_a_call
  return sum_operations(events, operation_scopes(hlo), steps)
