"""Scoring and ranking as a user runs them: exact, or a sentence."""

import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import polars as pl
import pytest

from eain_jax.data.batches import make_eval_stream
from eain_jax.evaluation.evaluator import score_part
from eain_jax.training.restore import open_run
from tests.experiments.binary import ROOT, call
from tests.experiments.tiny_eain import TINY_EAIN


@pytest.fixture(scope='module')
def run_dir(dataset, tmp_path_factory):
  """A small EAIN, trained for an epoch."""
  folder = tmp_path_factory.mktemp('scored') / 'run'
  done = call(
    'train',
    f'--dataset_dir={dataset.path}',
    f'--work_dir={folder}',
    '--model=eain',
    '--epochs=1',
    '--batch_size=256',
    *TINY_EAIN,
  )
  assert done.returncode == 0, done.stderr
  return folder


@pytest.fixture(scope='module')
def candidates(dataset):
  """Those of the test part, as raw ids."""
  part = dataset.parts['test']
  users = pl.read_parquet(dataset.path / 'users.parquet')['user']
  items = pl.read_parquet(dataset.path / 'items.parquet')['item']
  item = np.concatenate(
    [dataset.item[part.event][:, None], part.candidates], axis=1
  )
  event = np.repeat(part.event, item.shape[1])
  device = dataset.values_of('device', dataset.context_ids['device'])
  return pl.DataFrame(
    {
      'user': users.gather(dataset.user[event]),
      'item': items.gather(item.reshape(-1)),
      'timestamp': dataset.timestamp[event],
      'device': [device[i] for i in dataset.context_ids['device'][event]],
    }
  )


@pytest.mark.slow
def test_the_scores_are_those_of_the_evaluation(run_dir, candidates, tmp_path):
  run = open_run(run_dir)
  step = run.score_step()
  expected = score_part(
    lambda batch: step(run.params, run.stats, batch),
    make_eval_stream(run.dataset, 'test', 4096),
  ).logit
  path = tmp_path / 'in.parquet'
  candidates.with_row_index('key').write_parquet(path)
  for size in (1, 7, 1024):
    some = candidates.with_row_index('key').head(20 * size)
    some.write_parquet(path)
    output = tmp_path / f'out{size}.parquet'
    done = call(
      'score',
      f'--work_dir={run_dir}',
      f'--input={path}',
      f'--output={output}',
      f'--batch_size={size}',
      '--keep=key',
    )
    assert done.returncode == 0, done.stderr
    assert f'rows {len(some):,}, unknown_users 0' in done.stdout
    found = pl.read_parquet(output)
    assert found['key'].equals(some['key'])
    np.testing.assert_allclose(
      found['score'].to_numpy(), expected[: len(some)], atol=1e-6
    )


@pytest.mark.parametrize(
  ('flags', 'code', 'message'),
  [
    (('--output=x.txt',), 1, 'x.txt must end in one of .csv, .tsv'),
    (('--columns=user=nobody',), 1, "no column 'nobody' for user; it has user"),
    (('--columns=colour=x',), 2, 'colour, which is no input of the model'),
    (('--columns=history=item',), 2, 'must name history and history_timestamp'),
    (('--time=soon',), 2, "--time: the time 'soon' is neither a number nor"),
    (('--input=none.csv',), 1, 'none.csv does not exist'),
    (('--keep=none',), 1, "no column 'none'"),
    (('--work_dir=none',), 1, 'none'),
    (('--batch_size=0',), 2, 'batch_size'),
    (('--output={0}/in.csv',), 2, 'in.csv is, or lies in, what is read'),
    (('--input={0}', '--output={0}/x.csv'), 2, 'is, or lies in, what is read'),
    (('--input={0}/*', '--output={0}/x.csv'), 2, 'lies in, what is read'),
  ],
)
@pytest.mark.slow
def test_what_is_wrong_is_a_sentence(
  run_dir, candidates, tmp_path, flags, code, message
):
  path = tmp_path / 'in.csv'
  candidates.head(3).write_csv(path)
  done = call(
    'score',
    f'--work_dir={run_dir}',
    f'--input={path}',
    f'--output={tmp_path / "out.csv"}',
    *(flag.format(tmp_path) for flag in flags),
  )
  assert done.returncode == code, done.stderr
  assert message in done.stderr + done.stdout
  assert 'Traceback' not in done.stderr
  assert [p.name for p in tmp_path.iterdir()] == ['in.csv']


@pytest.mark.slow
def test_recommendations_are_the_best_of_all_scores(run_dir, dataset, tmp_path):
  """Against score over every pair, sorted."""
  tables = [
    pl.read_parquet(dataset.path / f'{name}s.parquet')[name]
    for name in ('user', 'item')
  ]
  users, items = tables[0].sort().head(30), tables[1]
  time = int(dataset.timestamp.max()) + 1
  pairs = users.to_frame().join(items.to_frame(), how='cross')
  pairs = pairs.with_columns(device=pl.lit('phone'))
  pairs.write_csv(tmp_path / 'pairs.csv')
  done = call(
    'score',
    f'--work_dir={run_dir}',
    f'--input={tmp_path / "pairs.csv"}',
    f'--output={tmp_path / "scores.parquet"}',
    f'--time={time}',
  )
  assert done.returncode == 0, done.stderr
  users.to_frame().with_columns(device=pl.lit('phone')).write_csv(
    tmp_path / 'users.csv'
  )
  done = call(
    'recommend',
    f'--work_dir={run_dir}',
    f'--users={tmp_path / "users.csv"}',
    f'--output={tmp_path / "best.parquet"}',
    '--k=7',
    '--columns=device=device',
  )
  assert done.returncode == 0, done.stderr
  assert 'users 30, unknown_users 0' in done.stdout
  scores = pl.read_parquet(tmp_path / 'scores.parquet')
  had = dataset.events_table()[['user', 'item']].unique()
  best = pl.read_parquet(tmp_path / 'best.parquet')
  assert best['rank'].to_list() == [*range(1, 8)] * 30
  assert best['user'].to_list() == [user for user in users for _ in range(7)]
  expected = (
    scores.join(had, on=['user', 'item'], how='anti')
    .sort('user', -pl.col('score'))
    .group_by('user', maintain_order=True)
    .head(7)
  )
  np.testing.assert_allclose(
    best['score'].to_numpy(), expected['score'].to_numpy(), atol=1e-6
  )
  named = best.join(
    scores,
    left_on=['user', 'recommended'],
    right_on=['user', 'item'],
    how='left',
    maintain_order='left',
  )
  np.testing.assert_allclose(
    best['score'].to_numpy(), named['score_right'].to_numpy(), atol=1e-6
  )


@pytest.mark.parametrize(
  ('flags', 'code', 'message'),
  [
    (('--output=x',), 1, 'x must end in one of'),
    (('--keep=a',), 2, '--keep goes with --users'),
    (('--users=none.csv',), 1, 'none.csv does not exist'),
    (('--k=0',), 2, 'k'),
  ],
)
@pytest.mark.slow
def test_what_recommend_cannot_do_is_a_sentence(
  run_dir, tmp_path, flags, code, message
):
  done = call(
    'recommend',
    f'--work_dir={run_dir}',
    f'--output={tmp_path / "out.csv"}',
    *flags,
  )
  assert done.returncode == code, done.stderr
  assert message in done.stderr + done.stdout
  assert 'Traceback' not in done.stderr
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_one_user_and_one_item_are_looked_at(run_dir, tmp_path):
  where, picture = f'--work_dir={run_dir}', tmp_path / 'look.png'
  done = call('inspect', where, '--user=u004', f'--output={picture}')
  assert done.returncode == 0, done.stderr
  first, *others = done.stdout.splitlines()
  assert 'eain: user u004, item i' in first
  assert ', the best of all that the user had not: logit ' in first
  for title in (
    'History, from',
    'SE gates',
    'Strongest masks',
    'Nearest items',
  ):
    assert any(line.startswith(title) for line in others)
  assert picture.read_bytes().startswith(b'\x89PNG')
  done = call(
    'inspect', where, '--user=none', '--item=i03', '--context=device=tv'
  )
  assert done.returncode == 0, done.stderr
  assert 'item i03; the user is unknown: logit' in done.stdout
  for flags, code, message in [
    (('--item=none',), 1, '--item=none is not in'),
    (('--context=colour=red',), 1, "'colour' is no context of the model"),
    (('--context=x',), 1, "--context holds 'x': write it as name=column"),
    (('--output=a.jpg',), 2, 'must end in .png'),
    (('--time=soon',), 2, '--time: the time'),
  ]:
    done = call('inspect', where, '--user=u004', *flags)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert 'Traceback' not in done.stderr


def test_an_export_that_is_whole_or_absent(run_dir, tmp_path):
  out = tmp_path / 'export'
  flags = (f'--work_dir={run_dir}', f'--output={out}')
  done = call('export', *flags, '--platforms=cpu,abacus')
  assert (done.returncode, 'cpu,abacus must name some' in done.stderr) == (
    2,
    True,
  )
  done = call('export', '--work_dir=nowhere', f'--output={out}')
  assert done.returncode == 1
  assert not out.exists()
  done = call('export', *flags, '--platforms=cpu')
  assert done.returncode == 0, done.stderr
  assert 'it gives the logits of golden.npz' in done.stdout
  again = call('export', *flags)
  assert again.returncode == 1
  assert f'--output={out} already holds something' in again.stderr


@pytest.fixture
def server(run_dir):
  """A running server, and where it is."""
  process = subprocess.Popen(
    [
      *(sys.executable, '-m', 'experiments.serve', f'--work_dir={run_dir}'),
      *('--port=0', '--drain_seconds=1'),
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout is not None
  line = process.stdout.readline()
  assert line.startswith('serving eain: http://127.0.0.1:'), (
    process.communicate()
  )
  yield process, line.split()[-1].removesuffix('/docs')
  process.kill()


@pytest.mark.slow
def test_what_is_accepted_before_sigterm_is_answered(server):
  process, url = server
  body = {'requests': [{'user': 'u001', 'items': ['i01', 'i02']}] * 20}
  answers, failures, stop = [], [], threading.Event()

  def ask():
    while not stop.is_set():
      try:
        # A connection each, as of clients that know nothing of each other.
        answer = httpx.post(f'{url}/score', json=body, timeout=60)
        answers.append(answer.status_code)
        if answer.headers.get('connection') == 'close':
          stop.set()
      except httpx.HTTPError as error:
        failures.append(error)

  threads = [threading.Thread(target=ask) for _ in range(8)]
  for thread in threads:
    thread.start()
  while len(answers) < 50:
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  for thread in threads:
    thread.join()
  out, error = process.communicate(timeout=60)
  assert (process.returncode, error) == (0, '')
  assert out.strip() == 'drained: all that was accepted is answered'
  assert failures == []
  assert set(answers) == {200}
  with pytest.raises(httpx.ConnectError):
    httpx.get(f'{url}/healthz')


def test_a_server_that_cannot_be_says_so(run_dir, tmp_path):
  done = call('serve', f'--work_dir={run_dir}', f'--export={tmp_path}')
  assert (done.returncode, 'one of the two' in done.stderr) == (2, True)
  done = call('serve', f'--export={tmp_path}')
  assert (done.returncode, 'is no exported model' in done.stderr) == (1, True)
  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = taken.getsockname()[1]
    done = call('serve', f'--work_dir={run_dir}', f'--port={port}')
  assert done.returncode == 1
  assert f'cannot listen at 127.0.0.1:{port}' in done.stderr
