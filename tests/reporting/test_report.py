"""The files of a report: all or none, and the same for equal runs."""

import errno
import json
import os
import re

import pytest

from eain_jax.artifacts import check_manifest
from eain_jax.errors import InputError
from eain_jax.reporting import report
from tests.faults.inject import injected

FLAGS = {'models': {'lr': {}}, 'seeds': 1}


def contents(folder):
  return {
    path.name: path.read_bytes()
    for path in folder.iterdir()
    if path.name != 'ballast'
  }


@pytest.fixture
def write(fake):
  """write(folder, seed, seconds): a report of two models, so long trained."""

  def make(folder, seed=0, seconds=1.0):
    runs = [fake.run(model, seed, seconds=seconds) for model in ('eain', 'lr')]
    return report.write_report(
      folder, runs, fake.manifest(), fake.no_ceilings, FLAGS
    )

  return make


def test_reports_of_equal_runs_differ_in_times_alone(write, fake, tmp_path):
  made = []
  for name, seconds in (('one', 1.0), ('two', 3.0)):
    (tmp_path / name).mkdir()
    table, times = write(tmp_path / name, seconds=seconds)
    made.append(contents(tmp_path / name))
    assert json.loads(made[-1].pop('times.json')) == times
    assert json.loads(made[-1]['table1.json']) == table
  assert made[0] == made[1]
  manifest = check_manifest(tmp_path / 'one')
  assert {*manifest['files'], 'manifest.json'} == set(made[0])
  assert manifest['dataset'] == fake.manifest()['fingerprint']
  assert manifest['flags'] == FLAGS
  for name in manifest['files']:
    (tmp_path / 'one' / name).write_bytes(made[0][name] + b' ')
    with pytest.raises(InputError, match=f'{name} was changed'):
      check_manifest(tmp_path / 'one')
    (tmp_path / 'one' / name).write_bytes(made[0][name])


def test_several_seeds_have_a_picture_of_differences(fake, tmp_path):
  for seeds in (2, 1):
    runs = fake.runs(seeds, ('din', 'eain'))
    folder = tmp_path / str(seeds)
    folder.mkdir()
    report.write_report(folder, runs, fake.manifest(), fake.no_ceilings, FLAGS)
    files = check_manifest(folder)['files']
    assert ('differences.png' in files) == (seeds == 2)
    page = (folder / 'report.html').read_text()
    assert page.count('<img') == (4 if seeds == 2 else 3)


@pytest.mark.parametrize(
  ('without', 'drawn'),
  [
    ((), {'attention', 'attention_examples', 'gates', 'gates_examples'}),
    (('attention', 'same'), {'gates', 'gates_examples'}),
    (('gate', 'mask'), {'attention', 'attention_examples'}),
  ],
)
def test_what_eain_looks_at_is_drawn_where_it_is(
  fake, tmp_path, without, drawn
):
  inside = fake.inside()
  for name in without:
    inside['average'][name] = None
    for candidate in ('positive', 'negative'):
      inside['examples'][0][candidate][name] = None
  runs = fake.runs(1, ('lr', 'eain'))
  table, _ = report.write_report(
    tmp_path, runs, fake.manifest(), fake.no_ceilings, FLAGS, inside
  )
  assert table['inside'] == inside
  files = check_manifest(tmp_path)['files']
  pictures = {name for name in files if name.endswith('.png')}
  always = {'auc.png', 'training_curves.png', 'calibration.png'}
  assert pictures == always | {f'{name}.png' for name in drawn}
  page = (tmp_path / 'report.html').read_text()
  assert page.count('<img') == len(pictures)
  assert re.findall('(?:src|href)="(?!data:image/png;base64,)', page) == []
  text = (tmp_path / 'table1.md').read_text()
  assert '## What EAIN looks at' in text
  assert ('| hour         |    0.3000 |' in text) == ('gate' not in without)
  assert ('history item \u00d7 hour 1.00' in text) == ('mask' not in without)
  assert ('Attention by recency' in text) == ('attention' not in without)


def test_what_is_to_be_known_first_stands_first(fake, tmp_path):
  table, _ = report.write_report(
    tmp_path,
    fake.runs(1),
    fake.manifest(),
    fake.no_ceilings,
    FLAGS,
    notes=['Not an equal comparison.'],
  )
  assert table['notes'][0] == 'Not an equal comparison.'
  assert 'Not an equal comparison.' in (tmp_path / 'report.html').read_text()


def test_why_it_is_not_known_what_eain_looks_at(fake, tmp_path):
  inside = {'seed': 0, 'left_out': 'W/checkpoints are gone'}
  report.write_report(
    tmp_path,
    fake.runs(1),
    fake.manifest(),
    fake.no_ceilings,
    FLAGS,
    inside,
  )
  assert 'gates.png' not in check_manifest(tmp_path)['files']
  for name in ('table1.md', 'report.html'):
    text = (tmp_path / name).read_text()
    assert 'Not shown: W/checkpoints are gone.' in text


class Stop(BaseException):
  """As a signal raises it."""


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# The folder, a picture, a text, the manifest; its flush; the last rename but
# those of the end, where nothing is left that could fail.
@pytest.mark.parametrize(
  ('point', 'number'),
  [('write', 1), ('write', 2), ('write', 5), ('write', 8), ('rename', 7)],
)
@pytest.mark.parametrize('error', [FULL, Stop()], ids=['full', 'stop'])
def test_a_report_that_fails_leaves_the_old_one(
  write, tmp_path, monkeypatch, point, number, error
):
  # Drawing takes a second, and is not what is tested.
  monkeypatch.setattr(report, 'plot_auc', lambda table, path: draw(path))
  monkeypatch.setattr(
    report, 'plot_training_curves', lambda runs, path, ceiling: draw(path)
  )
  monkeypatch.setattr(
    report, 'plot_calibration', lambda table, path: draw(path)
  )
  write(tmp_path)
  before = contents(tmp_path)

  def act():
    raise error

  with (
    pytest.raises((Stop, InputError)) as caught,
    injected(point, number, act),
  ):
    write(tmp_path, seed=1)
  if error is FULL:
    words = f'{tmp_path} cannot be written: the disk is full'
    assert str(caught.value) == words
  assert contents(tmp_path) == before
  write(tmp_path, seed=1)
  assert contents(tmp_path) != before
  check_manifest(tmp_path)


def draw(path):
  report.write_text(path, 'a picture')


def test_a_disk_that_is_full_leaves_the_old_report(write, small_disk, tmp_path):
  disk = small_disk('4m')
  write(disk)
  before = contents(disk)
  whole = sum(map(len, before.values()))
  for free in (0, whole // 3, whole * 2 // 3):
    (disk / 'ballast').unlink(missing_ok=True)
    room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / 'ballast').write_bytes(bytes(room - free))
    with pytest.raises(InputError) as caught:
      write(disk, seed=1)
    assert str(caught.value) == f'{disk} cannot be written: the disk is full'
    assert contents(disk) == before
  (disk / 'ballast').unlink()
  write(disk, seed=1)
  check_manifest(disk)
  (tmp_path / 'roomy').mkdir()
  write(tmp_path / 'roomy', seed=1)
  assert contents(disk) == contents(tmp_path / 'roomy')
