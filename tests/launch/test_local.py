"""launch.local: processes that start together, and end together."""

import ast
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from launch.local import FlagError, free_port, make_environments

LOCAL = [sys.executable, '-m', 'launch.local']
# What the launcher promises: a failure ends everything in this many seconds.
PROMISE = 10


def is_alive(pid):
  """Whether a process runs; one that waits to be reaped does not."""
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def wait_until(condition, seconds=30):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, 'it did not happen'
    time.sleep(0.02)


def read_pids(folder, count):
  """The numbers in `folder`/pid.*, once there are `count` of them."""

  def texts():
    return [path.read_text() for path in folder.glob('pid.*')]

  wait_until(lambda: len([t for t in texts() if t]) == count)
  return [int(text) for text in texts()]


def test_environment_of_each_process():
  base = {'HOME': '/h', 'XLA_FLAGS': '--a=1', 'EAIN_DISTRIBUTED': 'detect'}
  first, second = make_environments(base, 2, 1234)
  assert first == {
    'HOME': '/h',
    'XLA_FLAGS': '--a=1',
    'PYTHONUNBUFFERED': '1',
    'JAX_COORDINATOR_ADDRESS': '127.0.0.1:1234',
    'JAX_COORDINATOR_BIND_ADDRESS': '127.0.0.1:1234',
    'JAX_NUM_PROCESSES': '2',
    'JAX_PROCESS_ID': '0',
  }
  assert second == first | {'JAX_PROCESS_ID': '1'}


@pytest.mark.parametrize(
  ('given', 'merged'),
  [
    ('', '--xla_force_host_platform_device_count=2'),
    ('--a=1', '--a=1 --xla_force_host_platform_device_count=2'),
    (
      '--xla_force_host_platform_device_count=8 --a=1',
      '--a=1 --xla_force_host_platform_device_count=2',
    ),
  ],
)
def test_device_count_joins_the_users_flags(given, merged):
  (environment,) = make_environments({'XLA_FLAGS': given}, 1, 1, 2)
  assert environment['XLA_FLAGS'] == merged
  assert environment['JAX_PLATFORMS'] == 'cpu'


def test_platforms_of_the_user_stay():
  (environment,) = make_environments({'JAX_PLATFORMS': 'tpu,cpu'}, 1, 1, 2)
  assert environment['JAX_PLATFORMS'] == 'tpu,cpu'


@pytest.mark.parametrize(
  ('visible', 'slices'),
  [
    (None, ['0,1', '2,3']),
    ('4,5,6,7,8', ['4,5', '6,7']),
    ('GPU-a,GPU-b,GPU-c,GPU-d', ['GPU-a,GPU-b', 'GPU-c,GPU-d']),
  ],
)
def test_gpus_are_shared_out(visible, slices):
  base = {} if visible is None else {'CUDA_VISIBLE_DEVICES': visible}
  environments = make_environments(base, 2, 1, gpus_per_process=2)
  assert [e['CUDA_VISIBLE_DEVICES'] for e in environments] == slices


@pytest.mark.parametrize('visible', ['', '0,1,2'])
def test_too_few_gpus_are_refused(visible):
  with pytest.raises(FlagError, match='2 GPUs each need 4'):
    make_environments(
      {'CUDA_VISIBLE_DEVICES': visible}, 2, 1, gpus_per_process=2
    )


def test_two_launchers_take_two_ports():
  assert len({free_port() for _ in range(20)}) > 1


def test_all_succeed(start, finish, child):
  command = child("""
    print(os.environ['JAX_NUM_PROCESSES'], os.environ['XLA_FLAGS'])
    print('to stderr', file=sys.stderr)
    sys.stdout.buffer.write(b'\\xff' + b'x' * 100_000 + b'\\nno newline')
  """)
  process = start(
    [*LOCAL, '--processes=3', '--devices_per_process=2', '--', *command]
  )
  code, out, err = finish(process)
  assert code == 0
  lines = [
    b'3 --xla_force_host_platform_device_count=2',
    b'\xff' + b'x' * 100_000,
    b'no newline',
  ]
  for rank in range(3):
    prefix = f'[{rank}] '.encode()
    assert [line for line in out if line.startswith(prefix)] == [
      prefix + line for line in lines
    ]
  assert sorted(err) == [f'[{k}] to stderr'.encode() for k in range(3)]


def test_first_failure_names_the_reason(start, finish, child):
  command = child("""
    if rank == 1:
      print('no such dataset: DS', file=sys.stderr)
      sys.exit(3)
    time.sleep(300)
  """)
  begin = time.monotonic()
  code, _, err = finish(start([*LOCAL, '--processes=3', '--', *command]))
  assert time.monotonic() - begin < PROMISE
  assert code == 3
  assert err == [
    b'[1] no such dataset: DS',
    b'local: process 1 ended with exit code 3: no such dataset: DS',
  ]


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('victim', [0, 2])
def test_a_killed_process_ends_all(start, finish, child, tmp_path, victim):
  # They ignore SIGTERM, as JAX makes them, and have children of their own.
  command = child(f"""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    grandchild = subprocess.Popen(['sleep', '300'])
    for name, pid in (('own', os.getpid()), ('grand', grandchild.pid)):
      with open(f'{tmp_path}/pid.{{name}}.{{rank}}', 'w') as file:
        file.write(str(pid))
    time.sleep(300)
  """)
  process = start([*LOCAL, '--processes=3', '--', *command])
  pids = read_pids(tmp_path, 6)
  begin = time.monotonic()
  os.kill(int((tmp_path / f'pid.own.{victim}').read_text()), signal.SIGKILL)
  code, _, err = finish(process)
  assert time.monotonic() - begin < PROMISE
  assert code == 128 + signal.SIGKILL
  assert err[-1].decode() == (
    f'local: process {victim} was killed by SIGKILL; the other 2 were ended'
  )
  wait_until(lambda: not any(map(is_alive, pids)), 5)


STOPS_AND_SAVES = """
  def save(*_):
    print('saved', flush=True)
    sys.exit(75)

  signal.signal(signal.SIGTERM, save)
  signal.signal(signal.SIGUSR1, lambda *_: print('usr1', flush=True))
  print('ready', flush=True)
  while True:
    time.sleep(0.1)
"""


def wait_for_lines(process, text, count):
  """Reads the output up to the `count`-th line that ends in `text`."""
  while count:
    line = process.stdout.readline()
    assert line, 'the output ended'
    count -= line.strip().endswith(text)


def test_sigterm_lets_all_save(start, finish, child):
  command = child(STOPS_AND_SAVES)
  process = start([*LOCAL, '--processes=3', '--', *command])
  wait_for_lines(process, b'ready', 3)
  process.send_signal(signal.SIGUSR1)
  wait_for_lines(process, b'usr1', 3)
  process.send_signal(signal.SIGTERM)
  code, out, err = finish(process)
  assert code == 75
  assert sorted(out) == [f'[{k}] saved'.encode() for k in range(3)]
  assert err == [
    b'local: stopped and saved; the same command goes on from there'
  ]


def test_one_that_stops_by_itself_stops_all(start, finish, child):
  command = child("""
    if rank == 0:
      signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
      print('ready', flush=True)
      time.sleep(300)
    time.sleep(2)
    sys.exit(75)
  """)
  code, _, _ = finish(start([*LOCAL, '--processes=2', '--', *command]))
  assert code == 75


def test_a_failure_while_saving_is_no_success(start, finish, child):
  command = child(f"""
    if rank == 0:
      signal.signal(signal.SIGTERM, lambda *_: sys.exit('disk full'))
      print('ready', flush=True)
      time.sleep(300)
    {STOPS_AND_SAVES.replace(chr(10), chr(10) + '  ')}
  """)
  process = start([*LOCAL, '--processes=2', '--', *command])
  wait_for_lines(process, b'ready', 2)
  process.send_signal(signal.SIGTERM)
  code, _, err = finish(process)
  assert code == 1
  assert err[-1] == b'local: process 0 ended with exit code 1: disk full'


def test_one_that_does_not_save_in_time_is_killed(start, finish, child):
  command = child("""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print('ready', flush=True)
    time.sleep(300)
  """)
  process = start(
    [*LOCAL, '--processes=2', '--save_seconds=0.5', '--', *command]
  )
  wait_for_lines(process, b'ready', 2)
  process.send_signal(signal.SIGTERM)
  code, _, err = finish(process, PROMISE)
  assert code == 128 + signal.SIGKILL
  assert err[-1].endswith(b'was killed: no end 0.5 s after SIGTERM')


def test_sigint_once_asks_twice_kills(start, finish, child):
  command = child("""
    signal.signal(signal.SIGINT, lambda *_: print('asked', flush=True))
    print('ready', flush=True)
    while True:
      time.sleep(0.1)
  """)
  process = start([*LOCAL, '--processes=2', '--', *command])
  wait_for_lines(process, b'ready', 2)
  process.send_signal(signal.SIGINT)
  wait_for_lines(process, b'asked', 2)
  process.send_signal(signal.SIGINT)
  code, out, _ = finish(process, PROMISE)
  assert code == 128 + signal.SIGKILL
  assert out == []


def test_one_sigint_ends_a_plain_program(start, finish, child):
  command = child("""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    print('ready', flush=True)
    time.sleep(300)
  """)
  process = start([*LOCAL, '--processes=2', '--', *command])
  wait_for_lines(process, b'ready', 2)
  process.send_signal(signal.SIGINT)
  code, _, err = finish(process, PROMISE)
  assert code == 128 + signal.SIGINT
  assert err == [b'local: stopped by SIGINT']


@pytest.mark.skipif(sys.platform != 'linux', reason='Linux alone can do it')
def test_processes_die_with_a_killed_launcher(start, child, tmp_path):
  command = child(f"""
    with open(f'{tmp_path}/pid.{{rank}}', 'w') as file:
      file.write(str(os.getpid()))
    time.sleep(300)
  """)
  process = start([*LOCAL, '--processes=2', '--', *command])
  pids = read_pids(tmp_path, 2)
  process.kill()
  wait_until(lambda: not any(map(is_alive, pids)), PROMISE)


def test_only_first_shows_a_failed_one_too(start, finish, child):
  command = child("""
    print('hello', flush=True)
    if rank == 1:
      time.sleep(1)
      sys.exit('lost')
    time.sleep(300)
  """)
  process = start([*LOCAL, '--processes=3', '--only_first', '--', *command])
  code, out, err = finish(process)
  assert code == 1
  assert out == [b'[0] hello', b'[1] hello']
  assert err[0] == b'[1] lost'


def test_a_reader_that_leaves_stops_the_run(child):
  command = child("""
    while True:
      print('line', flush=True)
      time.sleep(0.01)
  """)
  script = '"$@" | head -n 1; exit "${PIPESTATUS[0]}"'
  done = subprocess.run(
    ['bash', '-c', script, 'x', *LOCAL, '--processes=2', '--', *command],
    capture_output=True,
    timeout=60,
    check=False,
  )
  assert done.returncode == 128 + signal.SIGPIPE
  assert done.stdout.endswith(b'] line\n')
  assert done.stderr == b'local: stopped, for nobody reads the output\n'


def test_colours_are_for_terminals(child):
  command = child("print('hello')")
  for colour in (True, False):
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != 'NO_COLOR'}
    process = subprocess.Popen(
      [*LOCAL, '--', *command],
      stdout=theirs,
      env=environment if colour else environment | {'NO_COLOR': '1'},
    )
    os.close(theirs)
    assert process.wait(60) == 0
    shown = os.read(ours, 1000).replace(b'\r', b'')
    os.close(ours)
    assert shown == (
      b'\x1b[32m[0]\x1b[0m hello\n' if colour else b'[0] hello\n'
    )


@pytest.mark.parametrize(
  ('arguments', 'code', 'sentence'),
  [
    ('--processes=2', 2, 'write -- and then the command'),
    ('--processes=2 --', 2, 'write -- and then the command'),
    ('--processes=2 python -m experiments.train', 2, 'write -- and then'),
    ('--processes=0 -- true', 2, '--processes=0'),
    ('--process=2 -- true', 2, "Unknown command line flag 'process'"),
    ('--devices_per_process=1 --gpus_per_process=1 -- true', 2, 'for CPUs'),
    ('-- no-such-program', 1, 'no such command: no-such-program'),
  ],
)
def test_bad_flags_are_one_sentence(start, finish, arguments, code, sentence):
  done, out, err = finish(start([*LOCAL, *arguments.split()]))
  assert (done, out, len(err)) == (code, [], 1)
  assert err[0].startswith(b'local: ')
  assert sentence in err[0].decode()


def test_help_is_no_failure(start, finish):
  code, out, _ = finish(start([*LOCAL, '--help']))
  assert code == 0
  assert any(b'--devices_per_process' in line for line in out)


def test_launcher_needs_no_jax(start, finish):
  code = "import launch.local, sys; print('jax' in sys.modules)"
  assert finish(start([sys.executable, '-c', code]))[1] == [b'False']


def test_processes_find_each_other_in_jax(start, finish, child):
  """psum of 1, 2, 3, 4 over the two devices of each of two processes."""
  command = child("""
    import jax
    import jax.numpy as jnp

    jax.distributed.initialize(
      os.environ['JAX_COORDINATOR_ADDRESS'],
      int(os.environ['JAX_NUM_PROCESSES']),
      rank,
      cluster_detection_method='deactivate',
    )
    first = 1 + 2 * jax.process_index()
    total = jax.pmap(lambda x: jax.lax.psum(x, 'i'), axis_name='i')(
      jnp.array([first, first + 1])
    )
    print([jax.device_count(), jax.local_device_count(), int(total[0])])
  """)
  process = start(
    [*LOCAL, '--processes=2', '--devices_per_process=2', '--', *command],
    JAX_PLATFORMS='cpu',
  )
  code, out, err = finish(process, 120)
  assert code == 0, err
  for rank in range(2):
    prefix = f'[{rank}] ['
    (line,) = [
      line.decode()
      for line in out
      if line.startswith(prefix.encode()) and b'Gloo' not in line
    ]
    assert ast.literal_eval(line[4:]) == [4, 2, 10]
