"""What is said of one user and one item, against the log and the scores."""

import numpy as np
import pytest
from rich.console import Console

import eain_jax
from eain_jax.config import (
  MODEL_CONFIGS,
  EainConfig,
  TrainConfig,
)
from eain_jax.reporting.inside_plots import inspection_figure
from eain_jax.reporting.inspection_tables import inspection_tables
from eain_jax.serving.inspection import inspect, item_vectors, nearest_items
from eain_jax.training import loop

TRAIN = TrainConfig(epochs=1, batch_size=512)


@pytest.fixture(scope='module')
def load(dataset, tmp_path_factory):
  """load(name): a small model, trained for an epoch; made once."""
  made = {}
  small = {
    'embedding_dim': 4,
    'mlp': (8,),
    'attention_dim': 4,
    'mask_hidden_dim': 8,
    'paim_dim': 4,
    'position_dim': 4,
    'attention': (8,),
  }

  def make(name):
    if name not in made:
      config = MODEL_CONFIGS[name]
      own = {k: v for k, v in small.items() if hasattr(config(), k)}
      folder = tmp_path_factory.mktemp('inspected') / name
      loop.fit(dataset, name, config(**own), TRAIN, folder)
      made[name] = eain_jax.load_model(folder)
    return made[name]

  return make


def look(model, user='u004', item='i33', time=None, num_nearest=3):
  asked = model.ask([user], [item], time and [time], {'device': ['phone']})
  return inspect(model.run, model.encoder, asked, num_nearest)


def text_of(found):
  console = Console(width=100, record=True, force_terminal=False)
  with console.capture() as captured:
    console.print(inspection_tables(found))
  return captured.get()


@pytest.mark.parametrize('name', ['eain', 'din', 'dnn', 'lr'])
def test_each_model_says_what_it_has(dataset, load, name):
  model = load(name)
  found = look(model)
  [logit] = model.score(['u004'], ['i33'], None, {'device': ['phone']})
  assert found.logit == pytest.approx(float(logit), abs=1e-6)
  assert found.item['item'] == 'i33'
  events = dataset.events_table().filter(user='u004')
  # The newest first, of the twelve that the model sees.
  assert [event['item'] for event in found.history] == (
    events['item'].to_list()[::-1][:12]
  )
  last = int(dataset.timestamp.max()) + 1
  assert found.history[0]['days_before'] == pytest.approx(
    (last - events['timestamp'][-1]) / 86_400
  )
  weights = [event['weight'] for event in found.history]
  if name in ('eain', 'din'):
    assert found.weights_are_shares
    assert sum(weights) == pytest.approx(1, abs=1e-5)
  else:
    assert set(weights) == {None}
  assert (found.gates is not None) == (name == 'eain')
  assert (found.mask is not None) == (name == 'eain')
  assert len(found.nearest) == (0 if name == 'lr' else 3)
  assert (inspection_figure(found) is None) == (name in ('dnn', 'lr'))
  text = text_of(found)
  assert ('SE gates' in text) == (name == 'eain')
  assert found.history[0]['item'] in text
  assert ('Nearest items' in text) == (name != 'lr')


def test_gates_and_masks_have_the_names_of_their_fields(load):
  found = look(load('eain'))
  config = EainConfig()
  assert found.fields[0] == ('user' if config.use_user else 'item')
  assert [name for name, _ in found.gates] == list(found.fields)
  assert all(0 < gate < 1 for _, gate in found.gates)
  assert np.shape(found.mask) == (len(found.fields),) * 2


def test_before_the_first_event_there_is_no_history(dataset, load):
  events = dataset.events_table().filter(user='u004')
  found = look(load('eain'), time=int(events['timestamp'][0]))
  assert found.history == []
  assert 'had nothing before' in text_of(found)
  # Gates and masks are still there to see.
  assert inspection_figure(found) is not None


def test_vectors_are_the_features_side_by_side(dataset, load):
  run = load('eain').run
  vectors = item_vectors(run)
  tables = {name: np.asarray(t) for name, t in run.params['tables'].items()}
  for item in (0, 41):
    tags = [i for i in dataset.item_ids['tags'][item] if i]
    expected = [
      tables['item'][dataset.item_ids['item'][item], :4],
      tables['brand'][dataset.item_ids['brand'][item], :4],
      tables['tags'][tags, :4].mean(0),
    ]
    np.testing.assert_allclose(
      vectors[item], np.concatenate(expected), atol=1e-6
    )
  assert item_vectors(load('lr').run) is None


def test_the_nearest_by_hand():
  vectors = np.array(
    [[1, 0], [0, 2], [3, 3], [0, 0], [-1, 0], [5, 0]], np.float32
  )
  found = nearest_items(vectors, 0, 9)
  assert [item for item, _ in found] == [5, 2, 1, 4]
  assert [cosine for _, cosine in found] == pytest.approx(
    [1, 2**-0.5, 0, -1], abs=1e-6
  )
  assert nearest_items(vectors, 0, 2) == found[:2]
  # What training never saw lies at 0, near to nothing.
  assert nearest_items(vectors, 3, 2) == []
