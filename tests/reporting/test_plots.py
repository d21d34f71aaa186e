"""The figures, read back from their axes."""

import dataclasses
import math

import numpy as np
import pytest

from eain_jax.reporting import plots
from eain_jax.reporting.table1 import build_table1


def _line(axes, label):
  return next(line for line in axes.lines if line.get_label() == label)


def test_every_axis_is_named(fake):
  axes = plots.training_figure(fake.runs(1)).axes
  assert [a.get_title(loc='left') for a in axes] == [
    'Training loss',
    'Validation AUC',
    'Validation GAUC',
    'Validation logloss',
  ]
  assert [a.get_ylabel() for a in axes] == [
    'nats an example',
    'AUC',
    'GAUC',
    'nats an example',
  ]
  assert [a.get_xlabel() for a in axes[2:]] == ['Epoch', 'Epoch']


def test_curves_of_one_seed(fake):
  figure = plots.training_figure(fake.runs(1))
  loss, auc, _, logloss = figure.axes
  # Losses .9 and .7 in the first epoch, half of each in the second.
  np.testing.assert_allclose(
    _line(loss, 'LR').get_xydata(), [[1, 0.8], [2, 0.4]]
  )
  np.testing.assert_allclose(
    _line(auc, 'LR').get_xydata(), [[1, 0.71], [2, 0.72]]
  )
  np.testing.assert_allclose(
    _line(logloss, 'EAIN').get_xydata(), [[1, 0.19], [2, 0.18]]
  )
  names = [text.get_text() for text in figure.legends[0].get_texts()]
  assert names == ['LR', 'MF', 'DNN', 'DIN', 'DeepFM', 'EAIN']
  colors = [_line(auc, name).get_color() for name in names]
  assert len(set(colors)) == len(colors)
  markers = [_line(auc, name).get_marker() for name in names]
  assert len(set(markers)) == len(markers)


def test_several_seeds_are_thin_lines_under_their_mean(fake):
  runs = fake.runs(3, ('eain',))
  # Seed 2 stopped after its first epoch, so the mean does too.
  runs[2] = dataclasses.replace(runs[2], records=runs[2].records[:3])
  auc = plots.training_figure(runs).axes[1]
  assert len(auc.lines) == 4
  np.testing.assert_allclose(_line(auc, 'EAIN').get_xydata(), [[1, 0.82]])
  assert sorted(len(line.get_xydata()) for line in auc.lines) == [1, 1, 2, 2]


def test_records_without_numbers_leave_gaps(fake):
  run = fake.run('eain', 0)
  for record, value in zip(run.records[2::3], (None, math.nan), strict=True):
    record['gauc'] = value
  run = dataclasses.replace(run, records=run.records[2::3])
  figure = plots.training_figure([run])
  assert len(_line(figure.axes[0], 'EAIN').get_xydata()) == 0
  assert np.isnan(_line(figure.axes[2], 'EAIN').get_ydata()).all()


def test_ceiling_is_drawn_where_it_is_known(fake):
  runs = fake.runs(1)
  figure = plots.training_figure(runs, {'auc': 0.9, 'gauc': math.nan})
  assert [len(axes.lines) for axes in figure.axes] == [6, 7, 6, 6]
  assert [text.get_text() for text in figure.axes[1].texts] == ['ceiling 0.900']


@pytest.mark.parametrize('seeds', [1, 3])
def test_files_are_png_and_nothing_else_is_left(fake, tmp_path, seeds):
  runs = fake.runs(seeds)
  table = build_table1(runs, fake.manifest(), fake.no_ceilings)
  plots.plot_training_curves(runs, tmp_path / 'curves.png')
  plots.plot_auc(table, tmp_path / 'auc.png')
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'auc.png',
    'curves.png',
  ]
  for path in tmp_path.iterdir():
    content = path.read_bytes()
    assert content.startswith(b'\x89PNG\r\n')
    assert len(content) > 10_000


def test_auc_figure(fake):
  table = build_table1(
    fake.runs(3), fake.manifest(), {'test': {'auc': 0.9, 'gauc': 0.9}}
  )
  axes = plots.auc_figure(table).axes[0]
  assert axes.get_xlabel() == 'Test AUC'
  assert [label.get_text() for label in axes.get_yticklabels()] == [
    'LR',
    'MF',
    'DNN',
    'DIN',
    'DeepFM',
    'EAIN',
  ]
  assert [text.get_text() for text in axes.texts][-1] == '0.8100'
  low, high = axes.containers[-1].lines[2][0].get_segments()[0][:, 0]
  assert (low, high) == pytest.approx((0.81 - 0.0248414, 0.81 + 0.0248414))
