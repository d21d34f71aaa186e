"""Skip Above as a setting is Skip Above as it is prepared."""

import dataclasses

import numpy as np
import pytest

from eain_jax.config import MODEL_CONFIGS, PrepareConfig, TrainConfig
from eain_jax.data.batches import make_train_stream
from eain_jax.data.dataset import open_dataset
from eain_jax.data.prepare import prepare
from eain_jax.data.skip_above import has_skip_above, with_skip_above
from eain_jax.errors import InputError
from eain_jax.training import loop
from eain_jax.training.restore import open_run


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """By whether it was prepared with Skip Above, one small world."""
  found = {}
  for skip_above in (False, True):
    folder = tmp_path_factory.mktemp('world') / 'dataset'
    config = PrepareConfig(
      synthetic=True,
      num_events=1000,
      eval_negatives=9,
      skip_above=skip_above,
      seed=3,
    )
    prepare(config, folder)
    found[skip_above] = open_dataset(folder)
  return found


@pytest.mark.parametrize(('source', 'choice'), [(False, 'on'), (True, 'off')])
def test_a_choice_is_the_dataset_prepared_so(prepared, source, choice):
  found = with_skip_above(prepared[source], choice)
  expected = prepared[choice == 'on']
  assert has_skip_above(found) == has_skip_above(expected)
  assert found.manifest['counts'] == expected.manifest['counts']
  assert sorted(found.manifest['notes']) == sorted(expected.manifest['notes'])
  for name, column in vars(expected.parts['train']).items():
    np.testing.assert_array_equal(getattr(found.parts['train'], name), column)
  streams = [make_train_stream(d, 160, seed=1) for d in (found, expected)]
  weights = []
  for step in (0, streams[0].steps_per_epoch + 1):
    mine, others = (stream.batch(step) for stream in streams)
    for name in ('target', 'label', 'weight', 'position'):
      np.testing.assert_array_equal(mine[name], others[name])
    weights.append(mine['weight'])
  # A positive weighs 1, and about half of its negatives do.
  share = np.mean([weight[:, 1:].mean() for weight in weights])
  assert 0.35 < share < 0.65 if choice == 'on' else share == 1.0
  # Whose dataset a run is of does not change.
  assert found.fingerprint == prepared[source].fingerprint


def test_what_is_so_already_stays_as_it_is(prepared):
  for skip_above, dataset in prepared.items():
    for choice in ('dataset', 'on' if skip_above else 'off'):
      assert with_skip_above(dataset, choice) is dataset


@pytest.mark.parametrize(('was', 'choice'), [(False, 'on'), (True, 'off')])
def test_labels_of_a_log_cannot_be_chosen_anew(prepared, was, choice):
  log = prepared[was]
  log = dataclasses.replace(log, manifest={**log.manifest, 'task': 'rating'})
  words = 'prepare the dataset with' + 'out' * was + ' --skip_above'
  with pytest.raises(InputError, match=f'--skip_above={choice} .* {words}'):
    with_skip_above(log, choice)
  assert with_skip_above(log, 'on' if was else 'off') is log


def test_a_run_and_its_logloss_are_those_of_the_prepared_dataset(
  prepared, tmp_path
):
  """Its probabilities are stated by the negatives that it trained on."""
  results = []
  for skip_above, choice in ((True, 'dataset'), (False, 'on')):
    work = tmp_path / choice
    fitted = loop.fit(
      prepared[skip_above],
      'lr',
      MODEL_CONFIGS['lr'](),
      TrainConfig(batch_size=256, epochs=1, skip_above=choice),
      work,
    )
    run = open_run(work)
    values = loop.evaluate(
      run.dataset, 'test', run.score_step(), run.params, run.stats
    )
    assert values == fitted.result['test']
    results.append(values)
  assert results[0] == results[1]
