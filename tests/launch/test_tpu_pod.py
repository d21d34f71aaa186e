"""launch/tpu_pod.sh, with a stand-in for gcloud.

It does as gcloud 528 does: runs the command of `ssh --worker=all` everywhere
(here in two folders, in a shell as sshd does), waits for all and fails with the
first exit code that is not 0. A session that a signal ended is run once more.
"""

import signal
import tarfile

import pytest

GCLOUD = """
  words = sys.argv[1:]
  with (notes / 'calls').open('a') as file:
    print(words[:4] + [w for w in words[4:] if '--command' not in w], file=file)
  workers = [notes / 'worker0', notes / 'worker1']
  assert words[:3] == ['compute', 'tpus', 'tpu-vm']
  if words[3] == 'scp':
    for worker in workers:
      worker.mkdir(exist_ok=True)
      data = pathlib.Path(words[4]).read_bytes()
      (worker / 'eain.tar.gz').write_bytes(data)
    sys.exit(0)
  assert words[3] == 'ssh'
  (command,) = [w[10:] for w in words if w.startswith('--command=')]
  # gcloud itself splits it, and ssh joins it again.
  command = ' '.join(command.split(' '))

  def session(k):
    (workers[k] / 'eain').mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
      ['bash', '-c', command],
      cwd=workers[k],
      env=os.environ | {'WORKER': str(k)},
    )

  running = [session(k) for k in range(len(workers))]
  codes = [process.wait() for process in running]
  codes = [
    session(k).wait() & 255 if code < 0 else code
    for k, code in enumerate(codes)
  ]
  sys.exit(next((code for code in codes if code), 0))
"""
# A worker's Python: notes what it is to install.
PYTHON = """
  words = sys.argv[1:]
  if words == ['--version']:
    print('Python 3.11.9')
  elif words == ['-m', 'venv', '.venv']:
    path = pathlib.Path('.venv/bin/python')
    path.parent.mkdir(parents=True)
    if pathlib.Path('no-ensurepip').exists():
      # As Ubuntu's without python3.11-venv leaves it.
      path.touch()
      sys.exit('ensurepip is not available')
    path.symlink_to(pathlib.Path(__file__))
  elif words[:3] == ['-m', 'pip', 'install']:
    pathlib.Path('installed').write_text(repr(words[3:]))
  else:
    sys.exit(f'unexpected: {words}')
"""


@pytest.fixture
def launch(commands, start):
  """launch(*words): the script, as it starts to run."""

  def make(*words):
    commands(gcloud=GCLOUD, python3_11=PYTHON)
    options = ('--tpu=pod', '--zone=z-1', '--project=p', '--python=python3_11')
    return start(['launch/tpu_pod.sh', *options, *words])

  return make


def test_installs_and_runs_on_every_worker(launch, finish, child, tmp_path):
  command = child("""
    first = os.environ['PATH'].split(':')[0].split('/')[-4:]
    values = [os.environ['EAIN_DISTRIBUTED'], first, sys.argv[1:]]
    # In one piece, for both write to one pipe.
    os.write(1, f'{os.environ["WORKER"]} {values}\\n'.encode())
  """)
  words = ['--a=b c', "it's", '$HOME', '', 'x;y', 'two\nlines', '*']
  code, out, err = finish(launch('--', *command, *words))
  assert (code, err) == (0, [])
  assert sorted(out) == [
    f'{k} {["detect", [f"worker{k}", "eain", ".venv", "bin"], words]}'.encode()
    for k in range(2)
  ]
  for worker in ('worker0', 'worker1'):
    folder = tmp_path / worker / 'eain'
    assert (folder / 'installed').read_text() == "['--quiet', '-e', '.[tpu]']"
    assert (folder / 'experiments' / 'train.py').exists()
  with tarfile.open(tmp_path / 'worker0' / 'eain.tar.gz') as archive:
    names = archive.getnames()
  assert {'pyproject.toml', 'eain_jax', 'experiments', 'launch'} <= set(names)
  assert not any('__pycache__' in name for name in names)
  calls = (tmp_path / 'calls').read_text().splitlines()
  assert len(calls) == 3
  for call in calls:
    for option in ('--worker=all', '--zone=z-1', '--project=p'):
      assert repr(option) in call


def test_what_a_failed_install_left_is_made_again(
  launch, finish, child, tmp_path
):
  command = child("os.write(1, b'ran\\n')")
  for worker in ('worker0', 'worker1'):
    (tmp_path / worker / 'eain').mkdir(parents=True, exist_ok=True)
    (tmp_path / worker / 'eain' / 'no-ensurepip').touch()
  code, out, _ = finish(launch('--', *command))
  assert (code != 0, out) == (True, [])
  for worker in ('worker0', 'worker1'):
    (tmp_path / worker / 'eain' / 'no-ensurepip').unlink()
  code, out, _ = finish(launch('--', *command))
  assert (code, out) == (0, [b'ran', b'ran'])


def test_skip_install_runs_alone(launch, finish, child, tmp_path):
  command = child("os.write(1, b'ran\\n')")
  flag = '--gcloud_flag=--internal-ip'
  code, out, _ = finish(launch('--skip_install', flag, '--', *command))
  assert (code, out) == (0, [b'ran', b'ran'])
  (call,) = (tmp_path / 'calls').read_text().splitlines()
  assert "'--internal-ip'" in call


@pytest.mark.parametrize('worker', [0, 1])
def test_one_worker_that_fails_fails_all(launch, finish, child, worker):
  command = child(f"sys.exit(3 * (os.environ['WORKER'] == '{worker}'))")
  code, _, err = finish(launch('--skip_install', '--', *command))
  assert code == 3
  assert err == [b'tpu_pod: a worker ended with exit code 3']


def test_a_killed_worker_is_not_started_again(launch, finish, child):
  command = child("""
    os.write(1, b'ran\\n')
    if os.environ['WORKER'] == '1':
      os.kill(os.getpid(), signal.SIGKILL)
  """)
  code, out, _ = finish(launch('--skip_install', '--', *command))
  assert (code, out) == (128 + signal.SIGKILL, [b'ran', b'ran'])


def test_a_failed_install_runs_nothing(launch, finish, child):
  command = child("os.write(1, b'ran\\n')")
  code, out, _ = finish(launch('--python=no-such-python', '--', *command))
  assert (code, out) == (127, [])


@pytest.mark.parametrize(
  'number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
)
def test_a_stop_lets_all_workers_save(launch, finish, child, number):
  command = child("""
    def save(*_):
      os.write(1, b'saved\\n')
      sys.exit(75)

    signal.signal(signal.SIGTERM, save)
    os.write(1, b'ready\\n')
    while True:
      time.sleep(0.1)
  """)
  process = launch('--skip_install', '--', *command)
  for _ in range(2):
    assert process.stdout.readline() == b'ready\n'
  process.send_signal(number)
  code, out, err = finish(process)
  assert (code, out) == (75, [b'saved', b'saved'])
  assert err == [
    b'tpu_pod: asking the workers to save and end',
    b'tpu_pod: saved; the same command goes on from there',
  ]


def test_a_busy_worker_is_left_alone(launch, finish, child, tmp_path):
  command = child("""
    os.write(1, b'ready\\n')
    time.sleep(300)
  """)
  first = launch('--skip_install', '--', *command)
  for _ in range(2):
    assert first.stdout.readline() == b'ready\n'
  code, out, err = finish(launch('--skip_install', '--', *command))
  assert (code, out) == (1, [])
  pids = [
    (tmp_path / f'worker{k}' / 'eain' / 'run.pid').read_text().strip()
    for k in range(2)
  ]
  for pid in pids:
    assert any(
      line.endswith(f'process {pid} runs there'.encode()) for line in err
    )
  first.send_signal(signal.SIGTERM)
  assert finish(first)[0] not in (0, 75)


@pytest.mark.parametrize(
  ('words', 'sentence'),
  [
    ([], '--tpu=NAME is missing'),
    (['--tpu=a'], 'write -- and then the command'),
    (['--tpu=a', '--'], 'write -- and then the command'),
    (['--tpu=a', '--zon=b', '--', 'true'], 'unknown option --zon=b'),
    (['--tpu=a', 'true'], 'unknown option true'),
  ],
)
def test_bad_options_are_one_sentence(start, finish, words, sentence):
  code, out, err = finish(start(['launch/tpu_pod.sh', *words]))
  assert (code, out, len(err)) == (2, [], 1)
  assert sentence in err[0].decode()


def test_help(start, finish):
  code, out, _ = finish(start(['launch/tpu_pod.sh', '--help']))
  assert code == 0
  assert (
    out[0]
    == b'A command on all workers of a TPU pod slice, as one JAX cluster.'
  )
  assert any(line.startswith(b'  --skip_install') for line in out)
