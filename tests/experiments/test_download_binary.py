"""`experiments.download` as a user runs it, and then what it prints."""

import gzip
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.flag_files import read_flags
from tests.data.file_server import FileServer, answering, serving

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, 'no_proxy': '*', 'JAX_PLATFORMS': 'cpu'}
# More items than the 99 negatives of a test user.
NUM_USERS, NUM_ITEMS = 60, 130


def run(binary, *flags):
  return subprocess.run(
    [sys.executable, '-m', f'experiments.{binary}', *map(str, flags)],
    cwd=ROOT,
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
    check=False,
  )


def packed(lines):
  return gzip.compress(''.join(f'{line}\n' for line in lines).encode())


def events():
  """(user, item, day): the user's five events or more, on days of their own."""
  rng = random.Random(0)
  for user in range(NUM_USERS):
    items = rng.sample(range(NUM_ITEMS), 5 + user % 3)
    for day, item in enumerate(items):
      yield f'A{user:013}', f'B{item:09}', 16_000 + day


NUM_EVENTS = 60 * (5 + 6 + 7) // 3
NUM_TAKEN = len({item for _, item, _ in events()})


def files_of_2014():
  """Reviews as JSON, metadata as Python literals."""
  reviews = [
    json.dumps(
      {
        'reviewerID': user,
        'asin': item,
        'helpful': [0, 0],
        'reviewText': 'It "works".',
        'overall': 5.0,
        'unixReviewTime': day * 86_400,
        'reviewTime': '01 2, 2014',
      }
    )
    for user, item, day in events()
  ]
  metadata = [
    repr(
      {
        'asin': f'B{item:09}',
        'title': "It's",
        'price': 9.5 + item,
        'brand': f'b{item % 3}',
        'categories': [['Musical Instruments', f'c{item % 4}']],
      }
    )
    for item in range(NUM_ITEMS)
  ]
  return {
    '/categoryFiles/reviews_Musical_Instruments_5.json.gz': packed(reviews),
    '/categoryFiles/meta_Musical_Instruments.json.gz': packed(metadata),
  }


def files_of_2023():
  """Ratings as CSV with a header and milliseconds, metadata as JSON."""
  ratings = [
    f'{user},{item},5.0,{day * 86_400_000}' for user, item, day in events()
  ]
  metadata = [
    json.dumps(
      {
        'main_category': 'Musical Instruments',
        'title': 'It',
        'price': 9.5,
        'store': f'b{item % 3}',
        'categories': ['Musical Instruments', f'c{item % 4}'],
        'parent_asin': f'B{item:09}',
      }
    )
    for item in range(NUM_ITEMS)
  ]
  header = 'user_id,parent_asin,rating,timestamp'
  path = 'Musical_Instruments'
  return {
    f'/benchmark/5core/rating_only/{path}.csv.gz': packed([header, *ratings]),
    f'/raw/meta_categories/meta_{path}.jsonl.gz': packed(metadata),
  }


@pytest.fixture
def server():
  with FileServer() as server:
    server.files = files_of_2014()
    yield server


@pytest.fixture
def flags(server, tmp_path):
  return (
    '--dataset=musical_instruments_2014',
    f'--output_dir={tmp_path / "a folder"}',
    f'--mirror={server.url}',
  )


def commands(out):
  """The printed commands, as a shell takes them apart."""
  return [
    shlex.split(line)[1:]
    for line in out.splitlines()
    if line.startswith('python ')
  ]


@pytest.mark.parametrize(
  ('year', 'files'), [('2014', files_of_2014), ('2023', files_of_2023)]
)
def test_what_it_prints_prepares_the_dataset(server, tmp_path, year, files):
  server.files = files()
  done = run(
    'download',
    f'--dataset=musical_instruments_{year}',
    f'--output_dir={tmp_path / "a folder"}',
    f'--mirror={server.url}',
  )
  assert done.returncode == 0, done.stderr
  prepare, table1, published, published_table1 = commands(done.stdout)
  for command, negatives in ((prepare, 99), (published, 1)):
    ran = subprocess.run(
      [sys.executable, *command],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    assert ran.returncode == 0, ran.stderr
    folder = Path(command[2].removeprefix('--output_dir='))
    manifest = json.loads((folder / 'manifest.json').read_text())
    assert manifest['counts']['events'] == NUM_EVENTS
    assert manifest['counts']['users'] == NUM_USERS
    assert manifest['counts']['items'] == NUM_TAKEN
    assert manifest['counts']['items_in_metadata'] == NUM_TAKEN
    assert [source['format'] for source in manifest['sources']] == (
      ['amazon-2014-reviews', 'amazon-2014-metadata']
      if year == '2014'
      else ['amazon-ratings-csv-header', 'amazon-2023-metadata']
    )
    assert manifest['config']['eval_negatives'] == negatives
  assert manifest['split'] == 'last_out_no_validation'
  assert manifest['config']['negatives'] == 1
  assert manifest['config']['negative_exclusion'] == 'ever'
  # As DIN and BARS have it: no brand, no price, nothing of the time.
  features = {feature['name'] for feature in manifest['features']}
  assert features == {'user', 'item', 'category'}
  for command, dataset in ((table1, prepare), (published_table1, published)):
    assert command[:2] == ['-m', 'experiments.table1']
    dataset_dir = dataset[2].replace('--output_dir', '--dataset_dir')
    assert command[2] == dataset_dir


def test_electronics_is_printed_as_the_file_of_flags_prepares_it():
  # In a process of its own, for the module defines the binary's flags.
  lines = subprocess.check_output(
    [
      sys.executable,
      '-c',
      'from pathlib import Path; from experiments import download as d\n'
      'files = d.dataset_files("electronics_2014")\n'
      'of = Path("electronics_2014"), files, "5core", "published"\n'
      'print(*d.commands(*of), sep="\\n")',
    ],
    cwd=ROOT,
    text=True,
  )
  prepare, table1 = lines.splitlines()
  configs = ROOT / 'experiments' / 'configs' / 'electronics_2014_bars'
  given = read_flags(configs / 'prepare.flags')
  assert {f'--{flag}={text}' for flag, text in given.items()} == {
    word
    for word in shlex.split(prepare)[3:]
    if not word.startswith(('--output_dir', '--reviews', '--metadata'))
  }
  assert '--models=din' in table1
  assert f'--flags_dir={configs.relative_to(ROOT)}' in table1


def test_the_printed_table1_is_a_command_that_there_is(flags):
  _, table1, *_ = commands(run('download', *flags).stdout)
  # Flags that it does not know would be 2, and come before the dataset.
  text = one_sentence(
    run(table1[1].removeprefix('experiments.'), *table1[2:]), 1
  )
  assert 'last_out' in text


def test_all_reviews_are_cut_to_their_core(server, flags):
  path = '/categoryFiles/reviews_Musical_Instruments.json.gz'
  server.files = {path: next(iter(files_of_2014().values()))}
  done = run('download', *flags, '--reviews=all', '--nometadata')
  assert done.returncode == 0, done.stderr
  for command in commands(done.stdout)[::2]:
    assert '--k_core=5' in command
    assert not any(flag.startswith('--metadata') for flag in command)


def test_standard_output_is_files_and_commands_alone(server, flags, tmp_path):
  done = run('download', *flags)
  folder = tmp_path / 'a folder' / 'musical_instruments_2014'
  first, second, *rest = done.stdout.splitlines()
  assert first.startswith(
    f'{folder}/reviews_Musical_Instruments_5.json.gz: '
    f'{len(next(iter(server.files.values()))):,} bytes, sha256 '
  )
  assert second.startswith(f'{folder}/meta_Musical_Instruments.json.gz: ')
  assert len([line for line in rest if line.startswith('python -m ')]) == 4
  assert 'reviews_Musical_Instruments_5.json.gz: ' in done.stderr
  assert '\x1b' not in done.stderr
  again = run('download', *flags)
  assert again.stdout == done.stdout
  assert again.stderr.count('unchanged') == 2
  assert len(server.gets) == 2


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_goes_on_with_the_same_command(
  server, flags, tmp_path, number
):
  path = '/categoryFiles/reviews_Musical_Instruments_5.json.gz'
  content = gzip.compress(random.Random(0).randbytes(500_000), 0)
  server.files[path] = content
  server.script = [serving(cut=200_000, hang=True)]
  started = subprocess.Popen(
    [sys.executable, '-m', 'experiments.download', *flags],
    cwd=ROOT,
    env=ENVIRONMENT,
    stderr=subprocess.PIPE,
    text=True,
  )
  folder = tmp_path / 'a folder' / 'musical_instruments_2014'
  part = folder / f'{Path(path).name}.part'
  deadline = time.monotonic() + 60
  while not (part.exists() and part.stat().st_size > 100_000):
    assert time.monotonic() < deadline
    time.sleep(0.02)
  started.send_signal(number)
  _, err = started.communicate(timeout=60)
  assert started.returncode == 75, err
  last = err.splitlines()[-1]
  assert last == 'download: told to stop; the same command goes on'
  size = part.stat().st_size
  assert part.read_bytes() == content[:size]
  done = run('download', *flags)
  assert done.returncode == 0, done.stderr
  assert (path, f'bytes={size}-') in server.gets
  assert (folder / Path(path).name).read_bytes() == content
  assert not part.exists()


def one_sentence(done, code):
  assert done.returncode == code, done.stderr
  assert 'Traceback' not in done.stderr
  assert not done.stdout
  return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
  ('wrong', 'sentence'),
  [
    ([], 'download: --dataset=NAME is needed; --list names all'),
    (
      ['--dataset=beauty_2018'],
      'download: --dataset=beauty_2018 is unknown (perhaps all_beauty_2018, '
      'luxury_beauty_2018',
    ),
    (
      ['--dataset=beauty_2014', '--mirror=file:///x'],
      "download: --mirror='file:///x' is no address of a folder",
    ),
    (['--dataset=beauty_2014', 'beauty'], "download: 'beauty' is not a flag"),
    (['--dataset=beauty_2014', '--reviews=10core'], '--reviews=10core'),
    (['--dataset=beauty_2014', '--attempts=0'], '--attempts=0'),
  ],
)
def test_flags_that_are_wrong(wrong, sentence, tmp_path):
  done = run('download', f'--output_dir={tmp_path}', *wrong)
  assert done.returncode == 2
  assert 'Traceback' not in done.stderr
  assert sentence in done.stderr
  assert not done.stdout


def test_help_names_every_flag():
  done = run('download', '--help')
  assert done.returncode == 0
  for name in ('dataset', 'list', 'mirror', 'refresh', 'timeout', 'reviews'):
    assert f'--{name}' in done.stdout.replace('--[no]', '--').split('flags:')[1]


def test_failures_are_one_sentence(server, flags, tmp_path):
  server.script = [answering(404)]
  text = one_sentence(run('download', *flags), 1)
  assert text.startswith(f'download: {server.url}/categoryFiles/reviews_Mus')
  assert 'is not there (404): it may have moved, see https://jmcauley' in text
  assert not (tmp_path / 'a folder').exists()

  server.script = [serving(cut=100, hang=True)]
  patience = ('--timeout=1', '--attempts=1')
  text = one_sentence(run('download', *flags, *patience), 1)
  assert 'the server was silent for 1 seconds' in text
  assert '100 bytes are kept, and the same command goes on' in text


def test_damage_is_named(flags, tmp_path):
  assert run('download', *flags).returncode == 0
  folder = tmp_path / 'a folder' / 'musical_instruments_2014'
  (folder / 'meta_Musical_Instruments.json.gz').write_bytes(b'damage')
  text = one_sentence(run('download', *flags), 1)
  assert 'meta_Musical_Instruments.json.gz was changed after it was' in text


def test_a_full_disk_is_one_sentence(server, flags, small_disk):
  disk = small_disk('64k')
  path = '/categoryFiles/reviews_Musical_Instruments_5.json.gz'
  server.files[path] = gzip.compress(random.Random(0).randbytes(500_000), 0)
  text = one_sentence(run('download', *flags, f'--output_dir={disk}'), 1)
  assert f'needs 500.1 kB more, and {disk}' in text
  assert 'make room, and the same command goes on' in text


def test_the_list_names_every_address():
  done = run('download', '--list')
  lines = done.stdout.splitlines()
  assert done.returncode == 0
  assert len(lines) == 2 * 86
  assert len({len(line.split('http')[0]) for line in lines}) == 1
  one = run('download', '--list', '--dataset=books_2023', '--reviews=ratings')
  lab = 'https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023'
  assert [line.split() for line in one.stdout.splitlines()] == [
    ['books_2023', f'{lab}/benchmark/0core/rating_only/Books.csv.gz'],
    ['books_2023', f'{lab}/raw/meta_categories/meta_Books.jsonl.gz'],
  ]
