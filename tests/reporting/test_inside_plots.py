"""The pictures of what EAIN looks at, read back from their axes."""

import numpy as np
import pytest

from eain_jax.reporting import inside_plots, plots


def labels_of(axes):
  return [label.get_text() for label in axes.get_yticklabels()]


def test_attention_by_recency_and_likeness(fake):
  recency, likeness = inside_plots.attention_figure(fake.inside()).axes
  assert [bar.get_height() for bar in recency.patches] == [0.4, 0.2]
  np.testing.assert_array_equal(
    recency.lines[0].get_xydata(), [[1, 0.3], [2, 0.25]]
  )
  assert recency.get_xlabel() == 'Event of the history, 1 is the newest'
  # Too few events share a tag for a mean.
  assert labels_of(likeness) == ['brand']
  assert [text.get_text() for text in likeness.texts] == ['0.90', '1.25']


def test_scores_that_are_no_shares_have_no_equal_share(fake):
  inside = fake.inside(weights_are_shares=False)
  inside['average']['same'] = None
  for one in inside['average']['attention']:
    one['even'] = None
  (recency,) = inside_plots.attention_figure(inside).axes
  assert len(recency.lines) == 0


def test_nothing_to_show_is_no_picture(fake):
  inside = fake.inside(examples=[])
  inside['average'] |= {'attention': [], 'same': [], 'gate': None, 'mask': None}
  assert inside_plots.attention_figure(inside) is None
  assert inside_plots.examples_figure(inside) is None
  assert inside_plots.gates_figure(inside) is None
  assert inside_plots.example_gates_figure(inside) is None
  inside = fake.inside()
  inside['examples'][0]['positive'] |= {'gate': None, 'mask': None}
  assert inside_plots.example_gates_figure(inside) is None


def test_examples_have_their_history_with_labels(fake):
  first, second = inside_plots.examples_figure(fake.inside()).axes
  assert labels_of(first) == [
    'late \u00b7 acme \u00b7 new  0.2 d',
    'early \u00b7 acme \u00b7 new  1,234 d',
  ]
  assert first.get_title(loc='right').split('\n') == [
    'Taken: taken \u00b7 brand of taken',
    'Not taken: left \u00b7 brand of left',
    'the taken one has rank 7 of 100',
  ]
  widths = [bar.get_width() for bar in first.patches]
  assert widths == [0.75, 0.25, 0.5, 0.5]
  assert [bar.get_width() for bar in second.patches] == [0.75, 0.25]
  # The newest is on top: its axis runs downwards.
  assert first.patches[0].get_y() < first.patches[1].get_y()
  low, high = first.get_ylim()
  assert low > high


@pytest.mark.parametrize(
  'evil', ['$\\frac{', '\x1b[31m$x$', '{}' * 200, '', '\u4e2d\u6587', '\udc80']
)
def test_hostile_ids_are_drawn_as_text(fake, tmp_path, evil):
  inside = fake.inside(fields=[evil, 'b', evil])
  for example in inside['examples']:
    for one in (*example['history'], example['positive']):
      one['item'] = evil
      one['attributes'] = {evil: [evil, evil]}
  for one in inside['average']['gate']:
    one['field'] = evil
  for one in inside['average']['same']:
    one['feature'] = evil
  for draw in (
    inside_plots.attention_figure,
    inside_plots.examples_figure,
    inside_plots.gates_figure,
    inside_plots.example_gates_figure,
  ):
    plots.save_figure(draw(inside), tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').stat().st_size > 5_000
  labels = labels_of(inside_plots.examples_figure(inside).axes[0])
  assert max(map(len, labels)) <= 42


def test_gates_and_masks(fake):
  gates, masks = inside_plots.gates_figure(fake.inside()).axes
  assert labels_of(gates) == ['item', 'history item', 'hour']
  assert [bar.get_width() for bar in gates.patches] == [0.5, 0.7, 0.3]
  segments = gates.collections[0].get_segments()
  assert [list(one[:, 0]) for one in segments] == [
    [0.4, 0.6],
    [0.65, 0.8],
    [0.1, 0.35],
  ]
  assert labels_of(masks) == ['history item', 'hour']
  assert [label.get_text() for label in masks.get_xticklabels()] == [
    'item',
    'history item',
  ]
  # Below the diagonal: (history item, item), (hour, item), (hour, history).
  cells = {text.get_position(): text.get_text() for text in masks.texts}
  assert cells == {(0, 0): '0.50', (0, 1): '1.50', (1, 1): '1.00'}


def test_gates_and_masks_of_each_example(fake):
  inside = fake.inside()
  inside['examples'][0]['negative']['gate'] = [0.1, 0.3, 0.5]
  gates, masks, alone, _ = inside_plots.example_gates_figure(inside).axes
  assert labels_of(gates) == ['item', 'history item', 'hour']
  assert gates.get_title(loc='right').split('\n')[:2] == [
    'Taken: taken \u00b7 brand of taken',
    'Not taken: left \u00b7 brand of left',
  ]
  widths = [bar.get_width() for bar in gates.patches]
  assert widths == [0.2, 0.4, 0.6, 0.1, 0.3, 0.5]
  assert [bar.get_width() for bar in alone.patches] == [0.2, 0.4, 0.6]
  assert 'taken' in masks.get_title(loc='right')
  cells = {text.get_position(): text.get_text() for text in masks.texts}
  assert cells == {(0, 0): '0.50', (0, 1): '1.50', (1, 1): '1.00'}
  for gone, left in (('gate', 2), ('mask', 2)):
    inside = fake.inside()
    inside['examples'][0]['positive'][gone] = None
    assert len(inside_plots.example_gates_figure(inside).axes) == left


def test_one_of_the_two_layers_is_a_panel_by_itself(fake):
  for gone in ('gate', 'mask'):
    inside = fake.inside()
    inside['average'][gone] = None
    assert len(inside_plots.gates_figure(inside).axes) == 1


def test_many_fields_have_a_scale_instead_of_numbers(fake):
  mask = np.arange(400.0).reshape(20, 20).tolist()
  inside = fake.inside(fields=[f'f{i}' for i in range(20)])
  inside['average'] |= {'gate': None, 'mask': mask}
  masks, scale = inside_plots.gates_figure(inside).axes
  assert len(masks.texts) == 0
  assert scale.get_label() == '<colorbar>'
