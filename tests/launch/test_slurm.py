"""launch/slurm.sbatch, with stand-ins for Slurm's commands.

They do what Slurm 22.05 was seen to do: srun's exit code is the highest of its
tasks', a bad one has the others told to stop, SIGTERM to srun kills its tasks,
and `scancel --signal=TERM` reaches the tasks alone.
"""

import os
import signal
import time

import pytest

SRUN = """
  words = sys.argv[1:]
  (notes / 'srun').write_text(repr(words))
  options = []
  while words[0].startswith('--'):
    options.append(words.pop(0))
  tasks = [
    subprocess.Popen(
      words, env={**os.environ, 'SLURM_PROCID': str(k), 'SLURM_LOCALID': '0'}
    )
    for k in range(int(os.environ['SLURM_JOB_NUM_NODES']))
  ]

  def kill(*_):
    for task in tasks:
      task.kill()

  signal.signal(signal.SIGTERM, kill)
  (notes / 'new').write_text(' '.join(str(task.pid) for task in tasks))
  (notes / 'new').rename(notes / 'tasks')
  told = False
  while any(task.poll() is None for task in tasks):
    if any(task.poll() for task in tasks) and not told:
      told = '--kill-on-bad-exit=1' in options
      for task in tasks:
        task.terminate()
    time.sleep(0.02)
  sys.exit(max(t.poll() if t.poll() >= 0 else 128 - t.poll() for t in tasks))
"""
SCANCEL = """
  assert sys.argv[1:] == ['--signal=TERM', '40007'], sys.argv
  while not (notes / 'tasks').exists():
    time.sleep(0.02)
  for pid in (notes / 'tasks').read_text().split():
    os.kill(int(pid), signal.SIGTERM)
"""
SCONTROL = """
  words = sys.argv[1:]
  if words == ['show', 'hostnames', 'node[3-4]']:
    print('node3')
    print('node4')
  elif words == ['--oneliner', 'show', 'job', '40007']:
    state = os.environ.get('JOB_STATE', 'RUNNING')
    print(f'JobId=40007 JobName=eain JobState={state} Reason=None')
  elif words == ['requeue', '40007']:
    (notes / 'requeued').write_text('')
  else:
    sys.exit(f'unexpected: {words}')
"""
SLURM = {
  'SLURM_JOB_ID': '40007',
  'SLURM_JOB_NUM_NODES': '2',
  'SLURM_JOB_NODELIST': 'node[3-4]',
  'SLURM_CPUS_PER_TASK': '32',
}
STOPS_AND_SAVES = """
  def save(*_):
    # The first to end has srun tell the others again.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(1, b'saved\\n')
    sys.exit(75)

  signal.signal(signal.SIGTERM, save)
  os.write(1, b'ready\\n')
  if rank == 1:
    {second}
  while True:
    time.sleep(0.1)
"""


@pytest.fixture
def submit(commands, start):
  """submit(command, **environment): the job's script, as it starts to run."""

  def make(command, **environment):
    commands(srun=SRUN, scancel=SCANCEL, scontrol=SCONTROL)
    script = ['bash', 'launch/slurm.sbatch', *command]
    return start(script, **SLURM, **environment)

  return make


def wait_for_ready(process):
  for _ in range(2):
    assert process.stdout.readline() == b'ready\n'


def test_each_node_runs_one_process(submit, finish, child, tmp_path):
  command = child("""
    names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'PYTHONUNBUFFERED')
    values = ' '.join(os.environ[name] for name in names)
    # In one piece, for both write to one pipe.
    os.write(1, f'{rank} {values} {sys.argv[1:]}\\n'.encode())
  """)
  code, out, err = finish(submit([*command, '--a=b c', "it's $HOME"]))
  assert (code, err) == (0, [])
  words = ['--a=b c', "it's $HOME"]
  assert sorted(out) == [
    f'{k} node3:{10_000 + 40_007 % 20_000} 2 1 {words}'.encode()
    for k in range(2)
  ]
  options = (tmp_path / 'srun').read_text()
  for option in ('--nodes=2', '--ntasks-per-node=1', '--cpus-per-task=32'):
    assert repr(option) in options


def test_time_limit_saves_and_goes_back_to_the_queue(
  submit, finish, child, tmp_path
):
  process = submit(child(STOPS_AND_SAVES.format(second='pass')))
  wait_for_ready(process)
  # --signal=B:TERM: to the script alone.
  process.send_signal(signal.SIGTERM)
  code, out, err = finish(process)
  assert (code, out) == (75, [b'saved', b'saved'])
  assert err == [b'slurm.sbatch: saved; job 40007 goes back to the queue']
  assert (tmp_path / 'requeued').exists()


def test_a_cancelled_job_stays_cancelled(submit, finish, child, tmp_path):
  command = child(STOPS_AND_SAVES.format(second='pass'))
  process = submit(command, JOB_STATE='CANCELLED')
  wait_for_ready(process)
  process.send_signal(signal.SIGTERM)
  code, out, _ = finish(process)
  assert (code, out) == (1, [b'saved', b'saved'])
  assert not (tmp_path / 'requeued').exists()


def test_a_failure_is_not_tried_again(submit, finish, child, tmp_path):
  """The others save and end with 75, the highest exit code of all."""
  second = "time.sleep(0.5); sys.exit('no such dataset')"
  process = submit(child(STOPS_AND_SAVES.format(second=second)))
  code, out, err = finish(process)
  assert (code, out) == (1, [b'ready', b'ready', b'saved'])
  assert err[0] == b'no such dataset'
  assert not (tmp_path / 'requeued').exists()


def test_a_killed_task_fails_the_job(submit, finish, child, tmp_path):
  process = submit(
    child("""
      os.write(1, b'ready\\n')
      time.sleep(300)
    """)
  )
  wait_for_ready(process)
  begin = time.monotonic()
  victim = (tmp_path / 'tasks').read_text().split()[1]
  os.kill(int(victim), signal.SIGKILL)
  code, _, err = finish(process)
  assert time.monotonic() - begin < 10
  assert code == 128 + signal.SIGTERM or code == 128 + signal.SIGKILL
  assert err[-1] == f'slurm.sbatch: srun ended with exit code {code}'.encode()


def test_the_command_is_needed(start, finish):
  code, _, err = finish(start(['bash', 'launch/slurm.sbatch'], **SLURM))
  assert code == 2
  assert err[0].startswith(b'usage: ')


def test_slurm_reads_the_options(start, finish):
  """sbatch stops at the first line that is neither comment nor empty."""
  _, out, _ = finish(start(['cat', 'launch/slurm.sbatch']))
  head = out[: next(i for i, line in enumerate(out) if line[:1] != b'#')]
  options = [line.split()[1] for line in head if line.startswith(b'#SBATCH ')]
  assert {
    b'--ntasks-per-node=1',
    b'--signal=B:TERM@120',
    b'--requeue',
    b'--open-mode=append',
  } <= set(options)
  assert len(options) == sum(line.startswith(b'#SBATCH') for line in out)
