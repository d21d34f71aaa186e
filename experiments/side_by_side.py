"""Runs of one plan, trained side by side by processes of their own.

A step of one run keeps few cores busy: two runs on a core each take two thirds
of the time that they take after each other on both.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from absl import flags
from rich.text import Text

from eain_jax.config import TrainConfig
from eain_jax.data.dataset import Dataset
from eain_jax.errors import InputError, Interrupted
from eain_jax.locking import locked_folder
from eain_jax.reporting.progress import TrainingDisplay, console
from eain_jax.stopping import SIGNALS
from eain_jax.training import processes
from eain_jax.training.run_set import Job, check_begun, train_all, train_jobs
from experiments import cli
from launch.processes import SAVED, ProcessGroup, die_with_parent

JOBS = flags.DEFINE_integer(
  'jobs',
  1,
  'Runs that are trained at a time, each by a process of its own with its '
  'share of the cores; of CPUs.',
  lower_bound=1,
)
SEEDS_AT_ONCE = flags.DEFINE_integer(
  'seeds_at_once',
  0,
  'Seeds of a model that one program trains at a time, with the data on the '
  'device, where they fit into it. 0: all of them on an accelerator, one on a '
  'CPU, where that is faster.',
  lower_bound=0,
)
JOIN = flags.DEFINE_bool(
  'join',
  False,
  'Help a process that was started with the same flags and folder, here or on '
  'another machine: train runs that no other trains, and write no report.',
)
# Names the process that helpers end with.
PARENT = 'EAIN_JOBS_OF'
# From SIGTERM to SIGKILL, when one process fails and when all are to save.
GRACE_SECONDS, SAVE_SECONDS = 10.0, 120.0


def _cores() -> list[int] | None:
  """The cores that this process may use; None where that is not known."""
  if not hasattr(os, 'sched_getaffinity'):
    return None
  return sorted(os.sched_getaffinity(0))


def check_jobs() -> None:
  """Raises FlagError or InputError where --jobs asks for what cannot be."""
  if JOBS.value == 1 and not JOIN.value:
    return
  if JOIN.value and JOBS.value > 1:
    raise cli.FlagError('--join takes no --jobs: start it as often as you like')
  if PARENT in os.environ:
    die_with_parent(int(os.environ[PARENT]))
  if jax.process_count() > 1:
    raise InputError(
      '--jobs and --join are for runs of one process each: start it without a '
      'launcher'
    )
  if JOIN.value:
    return
  num_cores = len(_cores() or range(os.cpu_count() or 1))
  if JOBS.value > num_cores:
    raise cli.FlagError(
      f'--jobs={JOBS.value} is more than the {num_cores} cores here'
    )
  if (platform := jax.default_backend()) != 'cpu':
    raise InputError(
      f'--jobs={JOBS.value} is for CPUs, and this is {platform}: start a '
      'process for each device, the others with --join, each with its own '
      'CUDA_VISIBLE_DEVICES or TPU_VISIBLE_CHIPS'
    )


def seeds_at_once(configs: Sequence[TrainConfig]) -> int:
  """How many seeds of a model are trained together.

  Args:
    configs: of the runs.

  Raises:
    FlagError: the flag asks for what cannot be.
  """
  asked = SEEDS_AT_ONCE.value
  on_device = {'device'}
  if jax.default_backend() != 'cpu':
    on_device.add('auto')
  can_be = jax.process_count() == 1 and all(
    config.parallelism == 'none' and config.data_placement in on_device
    for config in configs
  )
  if asked > 1 and not can_be:
    raise cli.FlagError(
      f'--seeds_at_once={asked} needs one process, --parallelism=none and '
      '--data_placement=device'
    )
  if asked or not can_be or jax.default_backend() == 'cpu':
    return max(1, asked)
  return len(configs)


@contextlib.contextmanager
def folder_of_plan(output_dir: Path) -> Iterator[None]:
  """Keeps others out of a plan's folder, but those that join it.

  Raises:
    FlagError, InputError: another process has it, or --jobs cannot be.
  """
  check_jobs()
  with contextlib.ExitStack() as stack:
    if not JOIN.value:
      lock = lambda: stack.enter_context(
        locked_folder(output_dir, '--output_dir')
      )
      processes.together(lambda: processes.is_first() and lock())
    yield


def _start_helpers(module: str) -> None:
  """Runs this very command with --join, `JOBS` times, to their end."""
  count, cores = JOBS.value, _cores()
  group = ProcessGroup(GRACE_SECONDS, SAVE_SECONDS)
  command = [sys.executable, '-m', module, *sys.argv[1:], '--jobs=1', '--join']
  environment = {**os.environ, PARENT: str(os.getpid())}
  try:
    for rank in range(count):
      if cores:
        # What is started inherits it; XLA makes a thread a core it may use.
        os.sched_setaffinity(0, cores[rank::count])
      group.start(command, environment, forks=False)
  except OSError as error:
    group.close()
    raise InputError(f'cannot start {command[0]}: {error.strerror}') from error
  finally:
    if cores:
      os.sched_setaffinity(0, cores)
  code, reason = group.run()
  if code not in (0, SAVED):
    raise InputError(reason)
  if code == SAVED or {*SIGNALS} & {*group.received}:
    raise Interrupted('told to stop')


def train(
  dataset: Dataset, jobs: Sequence[Job], output_dir: Path, module: str
) -> bool:
  """Trains what is not trained yet, as the flags say.

  Args:
    dataset: of the plan.
    jobs: its runs.
    output_dir: of the plan.
    module: of the binary, to be started again.

  Returns:
    Whether all is trained, and a report is to be written.

  Raises:
    InputError: a run failed, or was begun on other data or by other versions.
    Interrupted: told to stop; all is saved.
  """
  at_once = seeds_at_once([job.config for job in jobs])
  processes.together(lambda: check_begun(dataset, jobs, output_dir))
  if JOIN.value:
    train_jobs(dataset, jobs, output_dir, TrainingDisplay, at_once)
    return False
  pending = [job for job in jobs if not job.is_finished(output_dir)]
  if JOBS.value > 1 and len(pending) > 1:
    _start_helpers(module)
  say = lambda text: console.print(Text(text))
  train_all(dataset, jobs, output_dir, TrainingDisplay, say, at_once)
  return True
