"""The files of a report: all or none, and the same for equal runs."""

import errno
import json
import os

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
    assert page.count('<img') == (3 if seeds == 2 else 2)


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
