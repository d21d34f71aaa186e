"""The evaluator against scikit-learn and plain loops on the small dataset."""

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from eain_jax.data.batches import make_eval_stream
from eain_jax.evaluation import evaluator


def fake_score(batch):
  """A logit that knows nothing, but differs by target item and user."""
  ids = batch['items']['item'][batch['target']]
  return np.sin(ids * 1.7 + batch['user'][:, None]).astype(np.float32)


@pytest.fixture
def scored(dataset):
  stream = make_eval_stream(dataset, 'test', 31 * 33)
  return evaluator.score_part(fake_score, stream)


def test_scores_come_back_in_order(dataset, scored):
  part = dataset.parts['test']
  assert len(scored.logit) == len(part) * 31
  for row in (0, 7, len(part) - 1):
    items = [dataset.item[part.event[row]], *part.candidates[row]]
    user = dataset.user[part.event[row]]
    ids = dataset.item_ids['item'][items]
    expected = np.sin(ids * 1.7 + dataset.user_ids[user])
    np.testing.assert_allclose(
      scored.logit[row * 31 : (row + 1) * 31], expected, atol=1e-6
    )
    assert scored.user[row * 31] == user
  assert scored.label.reshape(-1, 31)[:, 0].all()
  assert not scored.label.reshape(-1, 31)[:, 1:].any()


def test_metrics_by_other_means(dataset, scored):
  values = evaluator.evaluate_scores(dataset, scored)
  score = scored.logit.reshape(-1, 31)
  assert values['auc'] == pytest.approx(
    roc_auc_score(scored.label, scored.logit), abs=1e-12
  )
  # One request a user, so GAUC is the mean share of negatives below.
  below = (score[:, :1] > score[:, 1:]).mean(1)
  ties = (score[:, :1] == score[:, 1:]).mean(1)
  assert values['gauc'] == pytest.approx(np.mean(below + ties / 2), abs=1e-12)
  # Trained at one to four; stated at one to one.
  p = 1 / (1 + np.exp(-(scored.logit.astype(np.float64) + math.log(4))))
  weight = np.where(scored.label == 1, 1.0, 1 / 30)
  assert values['logloss'] == pytest.approx(
    log_loss(scored.label, p, sample_weight=weight), abs=1e-9
  )
  assert values['examples'] == len(scored.label)


def test_reliability_by_other_means(dataset, scored):
  bins = evaluator.reliability(dataset, scored)
  p = 1 / (1 + np.exp(-(scored.logit.astype(np.float64) + math.log(4))))
  weight = np.where(scored.label == 1, 1.0, 1 / 30)
  # A tenth of the mass each, equal logits together: by a walk over them.
  sums, below, total = {}, 0.0, weight.sum()
  for value in np.unique(scored.logit):
    tied = scored.logit == value
    mass = weight[tied].sum()
    number = int(10 * (below + mass / 2) / total)
    of_bin = sums.setdefault(number, np.zeros(4))
    of_bin += [
      mass,
      (weight * p)[tied].sum(),
      weight[tied & (scored.label == 1)].sum(),
      tied.sum(),
    ]
    below += mass
  assert [one['number'] for one in bins] == sorted(sums)
  for one in bins:
    mass, predicted, observed, count = sums[one['number']]
    assert one['weight'] == pytest.approx(mass)
    assert one['predicted'] == pytest.approx(predicted / mass)
    assert one['observed'] == pytest.approx(observed / mass, abs=1e-12)
    assert one['count'] == count
  # They are what ece is the mean of.
  values = evaluator.evaluate_scores(dataset, scored)
  gaps = [
    one['weight'] * abs(one['predicted'] - one['observed']) for one in bins
  ]
  assert values['ece'] == pytest.approx(sum(gaps) / total)
  assert sum(one['count'] for one in bins) == values['examples']


def test_fewer_candidates_are_the_first_ones(dataset):
  stream = make_eval_stream(dataset, 'test', 1024, max_negatives=5)
  few = evaluator.score_part(fake_score, stream)
  whole = evaluator.score_part(
    fake_score, make_eval_stream(dataset, 'test', 1024)
  )
  np.testing.assert_array_equal(
    few.logit.reshape(-1, 6), whole.logit.reshape(-1, 31)[:, :6]
  )


def test_only_a_known_world_has_a_ceiling(dataset):
  assert evaluator.ceiling(dataset, 'test') is None
