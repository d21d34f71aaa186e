"""The picture of calibration, read back from its axes."""

import numpy as np
import pytest

from eain_jax.reporting.calibration_plot import calibration_figure


def row(model, *seeds):
  """A row whose bins are (number, predicted, observed)."""
  return {
    'model': model,
    'name': model.upper(),
    'reliability': [
      [
        {
          'number': number,
          'predicted': predicted,
          'observed': observed,
          'weight': 1.0,
          'count': 5,
        }
        for number, predicted, observed in bins
      ]
      for bins in seeds
    ],
  }


def line(axes, label):
  return next(line for line in axes.lines if line.get_label() == label)


def test_a_line_a_model_beside_the_diagonal():
  rows = [
    row('lr', [(0, 0.3, 0.2), (1, 0.6, 0.8)]),
    row('eain', [(0, 0.1, 0.1), (1, 0.9, 0.9)]),
  ]
  figure = calibration_figure({'rows': rows})
  (axes,) = figure.axes
  np.testing.assert_allclose(
    line(axes, 'LR').get_xydata(), [[0.3, 0.2], [0.6, 0.8]]
  )
  np.testing.assert_allclose(
    line(axes, 'EAIN').get_xydata(), [[0.1, 0.1], [0.9, 0.9]]
  )
  names = [text.get_text() for text in figure.legends[0].get_texts()]
  assert names == ['LR', 'EAIN']
  np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[0, 0], [1, 1]])
  assert axes.get_xlabel() == 'Predicted probability, mean of the bin'
  assert axes.get_ylabel() == 'Observed share of positives'
  assert (axes.get_xscale(), axes.get_yscale()) == ('linear', 'linear')


def test_seeds_are_thin_and_their_mean_has_the_bins_of_all():
  # Ties have left the second seed without its first bin.
  first = [(0, 0.1, 0.0), (1, 0.4, 0.3), (2, 0.8, 0.7)]
  second = [(1, 0.6, 0.5), (2, 1.0, 0.9)]
  (axes,) = calibration_figure({'rows': [row('din', first, second)]}).axes
  np.testing.assert_allclose(
    line(axes, 'DIN').get_xydata(), [[0.5, 0.4], [0.9, 0.8]]
  )
  assert [len(one.get_xdata()) for one in axes.lines] == [2, 3, 2, 2]
  # Seeds that share none have no mean, and are drawn all the same.
  rows = [row('din', first[:1], second)]
  (axes,) = calibration_figure({'rows': rows}).axes
  assert [len(one.get_xdata()) for one in axes.lines] == [2, 1, 2, 0]


def test_rare_positives_are_seen_on_logarithms():
  bins = [(0, 0.0001, 0.0), (1, 0.001, 0.002), (2, 0.05, 0.04)]
  figure = calibration_figure({'rows': [row('lr', bins)]})
  (axes,) = figure.axes
  assert (axes.get_xscale(), axes.get_yscale()) == ('log', 'log')
  low, high = axes.get_xlim()
  assert axes.get_ylim() == (low, high)
  assert 0 < low < 0.0001
  assert 0.05 < high < 1
  figure.canvas.draw()
  # A bin without a positive is not at the bottom, as if it had some.
  path = line(axes, 'LR').get_transform().transform([[0.0001, 0.0]])
  assert not np.isfinite(path[0, 1])


@pytest.mark.parametrize('observed', [0.0, 1.0])
def test_one_class_alone_can_be_drawn(observed):
  figure = calibration_figure({'rows': [row('lr', [(0, 0.5, observed)])]})
  figure.canvas.draw()
  assert figure.axes[0].get_xscale() == 'linear'
