"""The binaries as a user runs them: output, files, exit codes, sentences."""

import collections
import csv
import gzip
import json
import os
import shutil

import pytest

from eain_jax.artifacts import write_manifest
from eain_jax.locking import locked_folder
from tests.experiments.binary import ROOT, call, succeed
from tests.experiments.tiny_eain import TINY_EAIN

DATA = ROOT / '..' / 'shared' / 'data'


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp('world') / 'dataset'
  out = succeed(
    'prepare_data',
    f'--output_dir={folder}',
    '--synthetic',
    '--num_events=3000',
    '--eval_negatives=20',
  )
  assert 'counts: ' in out
  return folder


SMALL = ('--epochs=2', '--batch_size=512', '--learning_rate=0.003')


@pytest.mark.slow
def test_train_then_evaluate_agree(world, tmp_path):
  work = tmp_path / 'run'
  flags = (f'--dataset_dir={world}', f'--work_dir={work}', '--model=eain')
  succeed('train', *flags, *SMALL, as_shipped=True)
  result = json.loads((work / 'result.json').read_text())
  assert {'model', 'valid', 'test', 'seconds', 'examples_per_second'} <= set(
    result
  )
  done = call('evaluate', f'--work_dir={work}', '--split=test', as_shipped=True)
  assert done.returncode == 0, done.stderr
  # The table for a person, once; the numbers for a program.
  assert done.stderr.count('GAUC') == 1
  values = json.loads(
    next(line for line in done.stdout.splitlines() if line.startswith('{'))
  )
  assert values['auc'] == result['test']['auc']
  assert values['ceiling']['auc'] > values['auc']
  evaluation = json.loads((work / 'evaluation_test.json').read_text())
  assert evaluation['test'] == values
  assert evaluation['split'] == result['split'] == 'last_out'


@pytest.mark.slow
def test_table1_twice_is_the_same_to_the_last_bit(tmp_path):
  reports = []
  for name in ('one', 'two'):
    out = tmp_path / name
    succeed(
      'table1',
      f'--output_dir={out}',
      '--num_events=2000',
      '--models=lr,eain',
      *TINY_EAIN,
      '--epochs=1',
      '--batch_size=512',
      # By two processes, whichever takes which run.
      f'--jobs={min(2, os.cpu_count() or 1)}',
    )
    files = {
      file.name: file.read_bytes() for file in out.iterdir() if file.is_file()
    }
    assert {'table1.md', 'table1.json', 'report.html'} <= set(files)
    assert any(file.endswith('.png') for file in files)
    times = json.loads(files.pop('times.json'))
    assert list(times) == ['lr', 'eain']
    reports.append(files)
  assert reports[0] == reports[1]
  table = json.loads(reports[0]['table1.json'])
  rows = {row['model']: row for row in table['rows']}
  assert list(rows) == ['lr', 'eain']
  for metric in ('auc', 'gauc', 'logloss', 'precision@10', 'recall@10', 'f1'):
    assert set(rows['eain'][metric]) == {'mean', 'ci95', 'values'}
  assert table['ceiling']
  assert {'gates.png', 'attention.png', 'calibration.png'} <= set(reports[0])
  # Started again, it reads its finished runs; with other flags it refuses.
  flags = (
    '--num_events=2000',
    '--models=lr,eain',
    *TINY_EAIN,
    '--batch_size=512',
  )
  again = call(
    'table1', f'--output_dir={tmp_path / "one"}', *flags, '--epochs=1'
  )
  assert again.returncode == 0, again.stderr
  other = call(
    'table1', f'--output_dir={tmp_path / "one"}', *flags, '--epochs=2'
  )
  assert other.returncode == 1
  assert 'holds what other flags made' in other.stderr
  # A finished run that cannot be read is named, not left out.
  run = tmp_path / 'one' / 'runs' / 'lr-seed0'
  result = (run / 'result.json').read_text()
  write_manifest(run, ('result.json', 'metrics.jsonl'))
  (run / 'result.json').write_text(result.replace('1', '2'))
  again = call(
    'table1', f'--output_dir={tmp_path / "one"}', *flags, '--epochs=1'
  )
  assert again.returncode == 1
  assert 'lr-seed0/result.json was changed after it was' in again.stderr
  (run / 'manifest.json').unlink()
  (run / 'result.json').write_text(result[:-10])
  again = call(
    'table1', f'--output_dir={tmp_path / "one"}', *flags, '--epochs=1'
  )
  assert again.returncode == 0, again.stderr
  # Without its manifest it was not finished: it goes on from its checkpoint.
  assert (run / 'result.json').read_text() == result
  # What EAIN looks at needs its parameters; the numbers do not.
  assert {'fields', 'average', 'examples'} <= set(table['inside'])
  shutil.rmtree(tmp_path / 'one' / 'runs' / 'eain-seed0' / 'checkpoints')
  again = call(
    'table1', f'--output_dir={tmp_path / "one"}', *flags, '--epochs=1'
  )
  assert again.returncode == 0, again.stderr
  left = json.loads((tmp_path / 'one' / 'table1.json').read_text())
  assert 'no evaluated checkpoint' in left['inside']['left_out']
  assert left['rows'] == table['rows']


def test_a_table1_that_cannot_begin_leaves_nothing(tmp_path, world):
  out = tmp_path / 'deep' / 'out'
  flag = f'--output_dir={out}'
  done = call('table1', flag, f'--dataset_dir={tmp_path / "none"}')
  assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
  assert 'is not a prepared dataset' in done.stderr
  with locked_folder(out, '--output_dir'):
    done = call('table1', flag, f'--dataset_dir={world}')
  assert done.returncode == 1
  assert f'{flag} is in use by process {os.getpid()}' in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
  assert not list(tmp_path.iterdir())


def test_verify_says_how_a_dataset_is_checked(tmp_path, world):
  bad = tmp_path / 'bad'
  shutil.copytree(world, bad)
  with (bad / 'columns' / 'events.item.npy').open('r+b') as file:
    file.seek(-1, os.SEEK_END)
    file.write(b'\x7f')
  # The settings of the run are refused only after the dataset was opened.
  flags = (f'--dataset_dir={bad}', f'--work_dir={tmp_path / "run"}')
  flags = (*flags, '--model=lr', '--parallelism=pmap', '--num_devices=9')
  done = call('train', *flags)
  assert done.returncode == 1
  assert 'events.item.npy was changed after it was written' in done.stderr
  done = call('train', *flags, '--verify=quick')
  assert done.returncode == 1
  assert 'was changed' not in done.stderr
  assert 'Traceback' not in done.stderr


BAD_INPUT = {
  'missing': ('--reviews={}/none.json', 'does not exist'),
  'empty': ('--reviews={}/empty.json', 'is empty'),
  'html': ('--reviews={}/page.json', 'is an HTML'),
  'folder': ('--reviews={}', 'is a folder'),
  'other keys': ('--reviews={}/keys.json', 'its keys are'),
  'metadata': ('--reviews={}/meta.json', 'is item metadata'),
}


@pytest.fixture(scope='module')
def bad_files(tmp_path_factory):
  folder = tmp_path_factory.mktemp('bad')
  (folder / 'empty.json').write_text('')
  (folder / 'page.json').write_text('<!DOCTYPE html><html>404</html>')
  (folder / 'keys.json').write_text('{"a": 1}\n')
  (folder / 'meta.json').write_text('{"asin": "B1", "categories": []}\n')
  (folder / 'log.csv').write_text('who,what,when\na,b,1\n')
  return folder


@pytest.mark.parametrize('name', BAD_INPUT)
def test_bad_input_is_one_sentence_and_nothing_is_written(
  name, bad_files, tmp_path
):
  flag, message = BAD_INPUT[name]
  out = tmp_path / 'dataset'
  done = call('prepare_data', f'--output_dir={out}', flag.format(bad_files))
  assert done.returncode == 1
  assert message in done.stderr
  assert 'Traceback' not in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('name', 'flags', 'code', 'message'),
  [
    ('train', ('--model=eain',), 2, 'dataset_dir'),
    ('train', ('--dataset_dir=x', '--work_dir=y', '--model=gpt'), 2, 'unknown'),
    (
      'train',
      ('--dataset_dir=x', '--work_dir=y', '--model=lr', '--mlp=8'),
      2,
      'not a setting of lr',
    ),
    ('train', ('--dataset_dir=x', '--work_dir=y', '--mlp=a'), 2, 'list values'),
    ('train', ('--dataset_dir=x', '--work_dir=y', '--epochs=0'), 2, 'epochs'),
    ('train', ('--dataset_dir=x', '--work_dir=y'), 1, 'not a prepared dataset'),
    ('train', ('--nonsense=1',), 2, 'nonsense'),
    ('evaluate', ('--work_dir=x',), 1, 'is not a run'),
    ('table1', ('--output_dir=x', '--models=lr,lr'), 2, 'once each'),
    # It takes seeds 0, 1, ..., and no dataset has two sizes.
    ('table1', ('--output_dir=x', '--seed=7'), 2, 'seed'),
    (
      'table1',
      ('--output_dir=x', '--dataset_dir=y', '--num_events=2000'),
      2,
      '--num_events is the size of the synthetic world',
    ),
    # As of a variable of the shell that is not set.
    ('table1', ('--output_dir=x', '--dataset_dir='), 2, 'dataset_dir is empty'),
    ('table1', ('--output_dir=x', '--flags_dir='), 2, 'flags_dir is empty'),
    # These would mean all interfaces, and all users.
    ('serve', ('--work_dir=x', '--host='), 2, 'host is empty'),
    (
      'recommend',
      ('--work_dir=x', '--output=x.csv', '--users='),
      2,
      'users is',
    ),
    # A number, if none that may be.
    ('benchmark', ('--output_dir=x', '--users=0'), 2, 'users=0'),
    ('prepare_data', ('--output_dir=x',), 1, 'exactly one source'),
    ('prepare_data', ('stray', '--output_dir=x'), 2, 'is not a flag'),
  ],
)
def test_exit_codes(name, flags, code, message):
  done = call(name, *flags)
  assert done.returncode == code, done.stderr
  assert message in done.stderr + done.stdout
  assert 'Traceback' not in done.stderr


def test_help_names_every_flag_and_ends_well():
  done = call('prepare_data', '--help')
  assert done.returncode == 0
  assert '--reviews' in done.stdout


REAL = {
  'musical instruments': (
    (
      '--reviews={}/amazon_2014_musical_instruments/Musical_Instruments_5.json.gz',
    ),
    {'lines': 10261, 'users': 1429, 'items': 900},
    (5974, 1429, 1429),
  ),
  'gift cards': (
    (
      '--reviews={}/amazon_2018_gift_cards/Gift_Cards_5.json.gz',
      '--metadata={}/amazon_2018_gift_cards/meta_Gift_Cards.json.gz',
      '--eval_negatives=20',
    ),
    {'lines': 2972, 'events': 2969, 'items': 148, 'items_in_metadata': 148},
    None,
  ),
  'beauty': (
    (
      '--events={}/amazon_2014_beauty/events.tsv.gz',
      '--columns=user=user_id,item=item_id,timestamp=time',
      '--items={}/amazon_2014_beauty/items.jsonl.gz',
      '--item_key=item_id',
      '--item_attributes=attributes',
      '--negatives=1',
    ),
    {'events': 198502, 'users': 22363, 'items': 12101, 'duplicates': 0},
    (131413, 22363, 22363),
  ),
  'beauty, published protocol': (
    (
      '--events={}/amazon_2014_beauty/events.tsv.gz',
      '--columns=user=user_id,item=item_id,timestamp=time',
      '--split=last_out_no_validation',
      '--eval_negatives=1',
    ),
    {'events': 198502},
    (153776, 22363, 22363),
  ),
}


@pytest.mark.real_data
@pytest.mark.parametrize('name', REAL)
def test_real_files_give_their_counts(name, tmp_path):
  if not DATA.is_dir():
    pytest.skip('the real files are not beside the project')
  flags, expected, positives = REAL[name]
  out = tmp_path / 'dataset'
  succeed(
    'prepare_data', f'--output_dir={out}', *(f.format(DATA) for f in flags)
  )
  counts = json.loads((out / 'manifest.json').read_text())['counts']
  assert {key: counts[key] for key in expected} == expected
  if positives:
    parts = ('train', 'valid', 'test')
    assert tuple(counts[part]['positives'] for part in parts) == positives


@pytest.mark.real_data
def test_real_ranked_clicks_skip_above(tmp_path):
  if not DATA.is_dir():
    pytest.skip('the real files are not beside the project')
  parts = {}
  for skip in (False, True):
    out = tmp_path / str(skip)
    succeed(
      'prepare_data',
      f'--output_dir={out}',
      f'--events={DATA}/ranked_clicks/events.tsv.gz',
      '--columns=user=session,item=document,timestamp=list,request=list,'
      'position=position,label=click',
      *(['--skip_above'] if skip else []),
    )
    counts = json.loads((out / 'manifest.json').read_text())['counts']
    parts[skip] = [counts[part] for part in ('train', 'valid', 'test')]
  total = {
    name: sum(part[name] for part in parts[False])
    for name in ('examples', 'positives', 'requests')
  }
  assert total == {'examples': 28720, 'positives': 1293, 'requests': 2872}
  assert parts[True][1:] == parts[False][1:]
  assert parts[True][0]['positives'] == parts[False][0]['positives']
  # By hand, of the lists before the cut: up to each list's last click.
  clicks = collections.defaultdict(list)
  with gzip.open(DATA / 'ranked_clicks' / 'events.tsv.gz', 'rt') as file:
    for row in csv.DictReader(file, delimiter='\t'):
      clicks[int(row['list'])].append(int(row['click']))
  kept = [len(c) - c[::-1].index(1) if 1 in c else 0 for c in clicks.values()]
  assert sum(kept) == 2990
  train = kept[: parts[False][0]['requests']]
  assert parts[True][0]['examples'] == sum(train)
  assert parts[True][0]['requests'] == sum(count > 0 for count in train)
