"""The synthetic world: its draws follow the probabilities that it states."""

import dataclasses
import hashlib
import tracemalloc

import numpy as np
import polars as pl
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from eain_jax.config import PrepareConfig
from eain_jax.data import synthetic
from eain_jax.data.dataset import open_dataset
from eain_jax.data.prepare import prepare
from eain_jax.data.synthetic import World, WorldConfig
from eain_jax.errors import InputError

SMALL = WorldConfig(
  num_events=12_000, num_users=800, num_items=160, num_categories=12, seed=3
)


@pytest.fixture(scope='module')
def small():
  world = World(SMALL)
  return world, world.generate()


@pytest.fixture(scope='module')
def default():
  """The default world, its last events, and 9 uniform negatives of each."""
  world = World(WorldConfig())
  log = world.generate()
  rows = world.user_start[1:] - 1
  had = np.zeros((len(rows), len(log.items)), bool)
  had[log.user, log.item] = True
  shown = np.empty((len(rows), 10), np.int32)
  shown[:, 0] = log.item[rows]
  rng = np.random.default_rng(0)
  for r, had_r in enumerate(had):
    shown[r, 1:] = rng.choice(np.flatnonzero(~had_r), 9, replace=False)
  return world, log, rows, shown


def auc(score_RC):
  """AUC over all rows, the first column being the positives."""
  label = np.zeros(score_RC.shape)
  label[:, 0] = 1
  return roc_auc_score(label.ravel(), score_RC.ravel())


def columns(log):
  device = log.context['device'].codes
  return {
    'user': log.user,
    'item': log.item,
    'timestamp': log.timestamp,
    'device': device,
  }


def assert_same(log, other):
  for name, column in columns(log).items():
    np.testing.assert_array_equal(column, columns(other)[name], name)
  assert log.item_attributes.equals(other.item_attributes)


def all_items(log, rows):
  items = np.arange(len(log.items), dtype=np.int32)
  return np.broadcast_to(items, (len(rows), len(items)))


def had_before(log, start, row):
  return log.item[start[log.user[row]] : row]


# The log.


def test_log_is_an_event_log_in_canonical_order(small):
  world, log = small
  assert log.user.dtype == np.int32
  assert log.item.dtype == np.int32
  assert log.timestamp.dtype == np.int64
  assert len(log.user) == len(log.item) == len(log.timestamp) == 12_000
  same_user = np.diff(log.user) == 0
  assert np.all(np.diff(log.user) >= 0)
  assert np.all(np.diff(log.timestamp)[same_user] > 0)
  np.testing.assert_array_equal(
    np.bincount(log.user), np.diff(world.user_start)
  )
  for ids, count in [(log.users, 800), (log.items, 160)]:
    assert len(ids) == ids.n_unique() == count
    assert ids.is_sorted()
  assert log.users[123] == 'user_0000123'
  assert log.items[42] == 'item_000042'
  device = log.context['device']
  assert device.codes.dtype == np.int32
  assert device.values.to_list() == ['desktop', 'phone', 'tablet']
  assert set(np.unique(device.codes)) == {0, 1, 2}
  assert log.counts['events'] == log.counts['lines'] == 12_000


def test_ids_sort_as_numbers_beyond_their_usual_width():
  ids = synthetic._numbered('brand', 1_200, 3)
  assert ids[7] == 'brand_0007'
  assert ids.is_sorted()


def test_no_user_has_an_item_twice(small):
  _, log = small
  pairs = log.user.astype(np.int64) * len(log.items) + log.item
  assert len(np.unique(pairs)) == len(pairs)


def test_times_are_sessions_within_2021_to_2023(default):
  _, log, _, _ = default
  first, last = np.array(['2021-01-01', '2024-01-01'], 'datetime64[s]')
  assert log.timestamp.min() >= first.astype(np.int64)
  assert log.timestamp.max() < last.astype(np.int64)
  gap = np.diff(log.timestamp)[np.diff(log.user) == 0]
  in_session = gap < 3_600
  assert gap[in_session].max() <= 1_801
  assert gap[~in_session].min() > 6 * 3_600
  assert abs(in_session.mean() - 0.55) < 0.01
  hour = log.timestamp // 3_600 % 24
  assert (hour < 6).mean() < 0.001


def test_the_longest_lives_stay_within_2021_to_2023():
  log = World(
    WorldConfig(num_events=4_000, num_users=20, num_items=2_000)
  ).generate()
  assert np.bincount(log.user).tolist() == [200] * 20
  assert np.all(np.diff(log.timestamp)[np.diff(log.user) == 0] > 0)
  year = log.timestamp.astype('datetime64[s]').astype('datetime64[Y]')
  assert set(year.astype(str)) <= {'2021', '2022', '2023'}


@pytest.mark.parametrize(
  ('num_events', 'num_users', 'num_items'),
  [(500, 100, 80), (2_000, 100, 80), (1_999, 100, 80), (777, 50, 400)],
)
def test_lengths_are_exact_at_every_load(num_events, num_users, num_items):
  config = WorldConfig(
    num_events=num_events,
    num_users=num_users,
    num_items=num_items,
    num_categories=8,
  )
  lengths = np.diff(World(config).user_start)
  assert lengths.sum() == num_events
  assert lengths.min() >= 5
  assert lengths.max() <= num_items // 4


def test_default_lengths_have_a_long_tail(default):
  world = default[0]
  lengths = np.diff(world.user_start)
  assert lengths.sum() == 60_000
  assert lengths.mean() == 15
  assert np.median(lengths) < 10
  assert lengths.max() > 100


def test_item_attributes(default):
  world, log, _, _ = default
  table = log.item_attributes
  assert table.schema == {
    'category': pl.String,
    'category_path': pl.List(pl.String),
    'brand': pl.String,
    'price': pl.Float64,
  }
  assert len(table) == len(log.items)
  assert table['category'].n_unique() == world.config.num_categories
  path = table['category_path']
  assert path.list.len().to_list() == [2] * len(table)
  assert path.list.last().to_list() == table['category'].to_list()
  parents = table.group_by('category').agg(
    pl.col('category_path').list.first().unique()
  )
  assert parents['category_path'].list.len().max() == 1
  assert path.list.first().n_unique() == 8
  assert 0 < table['brand'].null_count() < 0.05 * len(table)
  assert 0 < table['price'].null_count() < 0.06 * len(table)
  assert table['price'].is_nan().sum() == 0
  assert table['price'].min() >= 5
  assert table['price'].max() <= 405
  # A category's items must not be told by neighbouring ids.
  category = table['category'].to_numpy()
  assert np.mean(category[1:] == category[:-1]) < 0.1


# Determinism.


def test_same_seed_same_world(small):
  _, log = small
  assert_same(World(SMALL).generate(), log)


def test_other_seed_other_world(small):
  _, log = small
  other = World(dataclasses.replace(SMALL, seed=4)).generate()
  for name, column in columns(other).items():
    assert not np.array_equal(column, columns(log)[name]), name
  assert not other.item_attributes.equals(log.item_attributes)


@pytest.mark.parametrize('users_per_block', [37, 799, 800])
def test_block_size_changes_nothing(small, users_per_block):
  world, log = small
  assert_same(world.generate(users_per_block), log)


def test_golden_world(small):
  """Published figures name this world by its seed.

  If you did not intend to change it, a draw, a table or a default weight has
  changed its meaning.
  """
  _, log = small
  digest = hashlib.sha256()
  for column in columns(log).values():
    digest.update(np.ascontiguousarray(column).tobytes())
  for column in log.item_attributes.explode('category_path'):
    digest.update(repr(column.to_list()).encode())
  assert digest.hexdigest()[:16] == '34fd5499f2e3ab13'


def test_memory_is_bounded_beside_the_log():
  config = WorldConfig(num_events=500_000)
  world = World(config)
  tracemalloc.start()
  log = world.generate()
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert config.num_events * 20 == sum(c.nbytes for c in columns(log).values())
  assert peak - 20 * config.num_events < 200e6


# The probabilities.


@pytest.mark.parametrize('knows_type', [True, False])
def test_probabilities_of_all_items_sum_to_one(small, knows_type):
  world, log = small
  rows = np.random.default_rng(0).choice(len(log.user), 500, replace=False)
  preference = world.log_preference(
    log, rows, all_items(log, rows), knows_type=knows_type
  )
  assert preference.dtype == np.float64
  np.testing.assert_allclose(np.exp(preference).sum(axis=1), 1, atol=1e-9)
  for row, score in zip(rows, preference, strict=True):
    had = np.zeros(len(log.items), bool)
    had[had_before(log, world.user_start, row)] = True
    np.testing.assert_array_equal(np.isneginf(score), had)


def test_order_and_blocks_of_rows_change_nothing(small, monkeypatch):
  world, log = small
  rng = np.random.default_rng(1)
  rows = rng.choice(len(log.user), 300)
  items = rng.integers(160, size=(300, 7)).astype(np.int32)
  preference = world.log_preference(log, rows, items)
  monkeypatch.setattr(synthetic, '_MAX_SCORES', 7 * 11)
  np.testing.assert_array_equal(
    world.log_preference(log, rows, items), preference
  )
  one = world.log_preference(log, rows[5:6], items[5:6, 2:3])
  np.testing.assert_allclose(one[0, 0], preference[5, 2], rtol=1e-12)
  assert world.log_preference(log, rows[:0], items[:0]).shape == (0, 7)


def test_preference_is_the_stated_formula_event_by_event():
  """One type, no drift: the module's formula, term by term, in plain loops."""
  config = dataclasses.replace(SMALL, num_types=1, drift_rate=0)
  world = World(config)
  log = world.generate()

  def unweighted(**weights):
    """The world's tables with all weights 0 but those given."""
    names = [
      f.name for f in dataclasses.fields(config) if f.name.endswith('_weight')
    ]
    off = dict.fromkeys(names, 0.0)
    return World(dataclasses.replace(config, **{**off, **weights}))

  popularity = np.log(unweighted(popularity_weight=1)._type_factor[0])
  taste = np.log(unweighted(taste_weight=1)._type_factor[0])
  succeeds = np.log(unweighted(order_weight=1)._last_factor[:12])
  wave = np.log(unweighted(season_weight=1)._time_factor)
  assert set(np.unique(np.round(succeeds, 9))) == {0, 1}
  assert set(np.round(taste, 9)) <= {0, 0.5, 1, 1.5}

  paths = log.item_attributes['category'].to_list()
  category = np.array([int(name.split('_')[1]) for name in paths])
  within = world._log_within[:, world._place_of_item]
  rows = np.random.default_rng(2).choice(len(log.user), 60, replace=False)
  preference = world.log_preference(log, rows, all_items(log, rows))
  for row, score in zip(rows, preference, strict=True):
    start = world.user_start[log.user[row]]
    when = log.timestamp[row].astype('datetime64[s]').item()
    logit = config.popularity_weight * popularity + config.taste_weight * taste
    logit = (
      logit + config.season_weight * wave[(when.month - 1) * 24 + when.hour]
    )
    for c in range(12):
      h = sum(
        0.85 ** (row - 1 - j)
        for j in range(start, row)
        if category[log.item[j]] == c
      )
      logit[c] += config.attention_weight * h / (h + 0.5)
    if row > start:
      last = category[log.item[row - 1]]
      logit = logit + config.order_weight * succeeds[last]
      if log.timestamp[row] - log.timestamp[row - 1] < 3_600:
        logit[last] += config.session_weight
    p = np.exp(logit) / np.exp(logit).sum()
    p_item = p[category] * np.exp(within[log.context['device'].codes[row]])
    p_item[log.item[start:row]] = 0
    np.testing.assert_allclose(
      np.exp(score), p_item / p_item.sum(), rtol=1e-9, atol=1e-15
    )


def test_items_of_a_category_follow_popularity_affinity_and_interaction():
  """log p(item | category, type, device) from the item table, in loops."""
  world = World(SMALL)
  config, log = world.config, world.generate()
  by_brand = (
    2
    * world._table(
      synthetic._Draw.BRAND_AFFINITY, config.num_types, config.num_brands
    )
    - 1
  )
  by_price = (
    2 * world._table(synthetic._Draw.PRICE_AFFINITY, config.num_types, 4) - 1
  )
  style = world._table(synthetic._Draw.BRAND_STYLE, config.num_brands)
  table = log.item_attributes.to_dicts()
  rank_in_category = {}
  for place, item in enumerate(world._item_of_place):
    first = np.flatnonzero(
      world._place_category == world._place_category[place]
    )[0]
    rank_in_category[item] = place - first
  for row in [0, 4, 3 * config.num_types - 1]:
    kind, device = divmod(row, 3)
    utility, total = {}, {}
    for item, attributes in enumerate(table):
      value = -config.popularity_exponent * np.log(rank_in_category[item] + 2)
      side = 1.0
      if attributes['brand'] is None:
        side = 0.0
      else:
        brand = int(attributes['brand'].split('_')[1])
        value += config.affinity_weight * by_brand[kind, brand]
        side *= -1 if style[brand] < 0.5 else 1
      if attributes['price'] is None:
        side = 0.0
      else:
        level = int(np.searchsorted([15, 45, 135], attributes['price']))
        value += config.affinity_weight * by_price[kind, level]
        side *= 1 if attributes['price'] >= 45 else -1
      side *= 1 if device == 0 else -1
      utility[item] = value + config.interaction_weight * side
      name = attributes['category']
      total[name] = total.get(name, 0) + np.exp(utility[item])
    expected = [
      utility[i] - np.log(total[a['category']]) for i, a in enumerate(table)
    ]
    np.testing.assert_allclose(
      world._log_within[row, world._place_of_item], expected, atol=1e-9
    )


def integral_transform(world, log, rows):
  """Uniform in [0, 1) if the drawn items follow the world's probabilities."""
  rng = np.random.default_rng(5)
  order = rng.permutation(len(log.items))
  p = np.exp(world.log_preference(log, rows, all_items(log, rows)))[:, order]
  drawn = np.argsort(order)[log.item[rows]]
  number = np.arange(len(rows))
  below = np.cumsum(p, axis=1)[number, drawn] - p[number, drawn]
  return below + rng.random(len(rows)) * p[number, drawn]


def uniformity(sample):
  """p-value of a chi-square test over 20 cells."""
  counts = np.bincount(np.minimum(sample * 20, 19).astype(int), minlength=20)
  return scipy.stats.chisquare(counts).pvalue


def test_draws_follow_the_probabilities():
  config = dataclasses.replace(SMALL, num_events=20_000, drift_rate=0.1)
  world = World(config)
  log = world.generate()
  rows = np.arange(len(log.user))
  sample = integral_transform(world, log, rows)
  event = rows - world.user_start[log.user]
  gap = np.diff(log.timestamp, prepend=0)
  for part in [
    np.ones(len(rows), bool),
    event == 0,
    event > 12,
    (event > 0) & (gap < 3_600),
    gap >= 3_600,
    log.context['device'].codes == 2,
  ]:
    assert uniformity(sample[part]) > 1e-3
  p = np.exp(world.log_preference(log, rows, all_items(log, rows))).ravel()
  hit = np.zeros((len(rows), len(log.items)))
  hit[rows, log.item] = 1
  cell = np.digitize(p, [1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.2])
  expected = np.bincount(cell, p)
  spread = np.sqrt(np.bincount(cell, p * (1 - p)))
  z = (np.bincount(cell, hit.ravel()) - expected) / spread
  assert np.all(np.abs(z) < 4), z


@pytest.mark.parametrize(
  'term',
  [
    'popularity_weight',
    'taste_weight',
    'attention_weight',
    'order_weight',
    'session_weight',
    'season_weight',
    'affinity_weight',
    'interaction_weight',
    'popularity_exponent',
    'drift_rate',
  ],
)
def test_draws_follow_each_term_as_it_is_stated(small, term):
  """Neyman and Pearson's test of the world against the world without a term.

  The sum of log p - log p' over the drawn items, less its expectation, is
  about normal under the p that the draws follow, and far from it under p'.
  """
  world, log = small
  rows = np.arange(len(log.user))
  without = World(dataclasses.replace(world.config, **{term: 0}))
  with np.errstate(invalid='ignore'):
    log_p = world.log_preference(log, rows, all_items(log, rows))
    log_q = without.log_preference(log, rows, all_items(log, rows))
    ratio = np.nan_to_num(log_p - log_q)

  def z(log_probability):
    p = np.exp(log_probability)
    mean = (p * ratio).sum(axis=1)
    variance = (p * ratio**2).sum(axis=1) - mean**2
    surplus = ratio[rows, log.item] - mean
    return surplus.sum() / np.sqrt(variance.sum())

  assert abs(z(log_p)) < 4
  assert z(log_q) > 8


def test_types_drift_in_the_replay_as_in_the_draw():
  config = dataclasses.replace(SMALL, drift_rate=0.3)
  world = World(config)
  log = world.generate()
  rows = np.arange(len(log.user))
  still = World(dataclasses.replace(config, drift_rate=0))
  items = log.item[:, None]
  gain = world.log_preference(log, rows, items) - still.log_preference(
    log, rows, items
  )
  event = rows - world.user_start[log.user]
  np.testing.assert_array_equal(gain[event == 0], 0)
  assert gain[event > 8].mean() > 0.2


# Signal.


@pytest.mark.parametrize(
  ('weight', 'margin'),
  [
    ('taste_weight', 0.003),
    ('attention_weight', 0.03),
    ('order_weight', 0.008),
    ('session_weight', 0.002),
    ('season_weight', 0.001),
    ('affinity_weight', 0.004),
    ('interaction_weight', 0.008),
  ],
)
def test_each_term_carries_signal(default, weight, margin):
  world, log, rows, shown = default
  without = World(dataclasses.replace(world.config, **{weight: 0}))
  ceiling = auc(world.log_preference(log, rows, shown))
  assert ceiling - auc(without.log_preference(log, rows, shown)) > margin


def test_ceiling_and_simple_scores_are_well_apart(default):
  world, log, rows, shown = default
  train = np.ones(len(log.user), bool)
  train[rows] = False
  count = np.bincount(log.item[train], minlength=len(log.items))
  category = log.item_attributes['category'].rank('dense').to_numpy()
  past = np.zeros((len(rows), category.max() + 1))
  np.add.at(past, (log.user[train], category[log.item[train]]), 1)
  popularity = auc(count[shown])
  attention = auc(past[np.arange(len(rows))[:, None], category[shown]])
  ceiling = auc(world.log_preference(log, rows, shown))
  assert 0.65 < popularity < 0.73
  assert popularity + 0.05 < attention < ceiling - 0.08
  assert 0.88 < ceiling < 0.93


def test_the_history_tells_nearly_all_of_the_state(default):
  """The best score that knows no types comes within .01 of the ceiling.

  Given the past, the type has a posterior: a forward filter over the types
  with the exact likelihood of each event's device and item.
  """
  world, log, rows, shown = default
  rows, shown = rows[::4], shown[::4]
  num_types, rate = world.config.num_types, world.config.drift_rate
  user = log.user[rows].astype(np.int64)
  last = rows - world.user_start[user]
  order = np.argsort(-last, kind='stable')
  user, last, rows, shown = user[order], last[order], rows[order], shown[order]
  start = world.user_start[user]
  device = log.context['device'].codes
  device_rate = np.diff(world._device_cumulative, prepend=0, axis=1)
  posterior = np.full((len(rows), num_types), 1 / num_types)
  past = np.empty((len(rows), last[0] + 1), np.int64)
  score = np.empty(shown.shape)
  users = world._begin(user)
  for event in range(last[0] + 1):
    count = np.sum(last >= event)
    users = users.select(slice(count))
    posterior = posterior[:count]
    if event:
      posterior = (1 - rate) * posterior + rate / num_types
    at = start[:count] + event
    now, on = log.timestamp[at], device[at]
    fresh = (now - users.timestamp >= 3_600)[:, None]
    posterior = posterior * np.where(fresh, device_rate[:, on].T, 1)
    posterior /= posterior.sum(axis=1, keepdims=True)
    place = world._place_of_item[log.item[at]]
    done = np.flatnonzero(last[:count] == event)
    likelihood = np.empty((count, num_types))
    mixture = np.zeros(shown[done].shape)
    for kind in range(num_types):
      guess = dataclasses.replace(users, type=np.full(count, kind))
      likelihood[:, kind] = np.exp(
        world._score(guess, now, on, past[:count, :event], place[:, None])
      )[:, 0]
      if len(done):
        mixture += posterior[done, kind, None] * np.exp(
          world._score(
            guess.select(done),
            now[done],
            on[done],
            past[done, :event],
            world._place_of_item[shown[done]],
          )
        )
    score[done] = mixture
    posterior = posterior * likelihood
    posterior /= posterior.sum(axis=1, keepdims=True)
    past[:count, event] = place
    world._advance(users, world._place_category[place], now)
  ceiling = auc(world.log_preference(log, rows, shown))
  assert 0 < ceiling - auc(score) < 0.01
  inferred = world.log_preference(log, rows, shown, knows_type=False)
  np.testing.assert_allclose(np.exp(inferred), score, rtol=1e-9)


def test_of_one_type_there_is_nothing_to_infer(small):
  world = World(dataclasses.replace(SMALL, num_types=1))
  log = world.generate()
  rows = np.arange(0, len(log.user), 37)
  items = all_items(log, rows)[:, ::9]
  np.testing.assert_allclose(
    world.log_preference(log, rows, items, knows_type=False),
    world.log_preference(log, rows, items),
  )


# Bad input.


@pytest.mark.parametrize(
  ('sizes', 'sentence'),
  [
    ({'num_users': 30_000}, 'num_events=60000 must lie between 150000 and'),
    ({'num_users': 10}, 'must lie between 50 and 2000'),
    ({'num_items': 63}, 'num_items=63 must be at least 64'),
    ({'num_items': 19, 'num_categories': 4}, 'must be at least 20'),
    ({'num_items': 10**6, 'num_types': 100}, 'take fewer'),
  ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, sentence):
  with pytest.raises(InputError, match=sentence):
    World(WorldConfig(**sizes))


@pytest.mark.parametrize(
  'values',
  [{'num_events': 99}, {'seed': -1}, {'drift_rate': 1.5}, {'drift_rate': -1}],
)
def test_values_out_of_bounds_are_refused(values):
  with pytest.raises(InputError, match=next(iter(values))):
    WorldConfig(**values)


def test_weights_that_leave_no_choice_are_refused(monkeypatch):
  monkeypatch.setattr(synthetic, '_MAX_DRAWS', 50)
  config = dataclasses.replace(SMALL, popularity_exponent=50)
  with pytest.raises(InputError, match='no new item in 50 draws'):
    World(config).generate()


def test_a_log_of_another_world_is_refused(small):
  world, log = small
  rows, items = np.array([0]), np.array([[0]], np.int32)
  cut = dataclasses.replace(log, user=log.user[:-1])
  with pytest.raises(InputError, match='11999 events of 800 users'):
    world.log_preference(cut, rows, items)
  other = World(dataclasses.replace(SMALL, seed=4))
  with pytest.raises(InputError, match='is not what this world'):
    other.log_preference(log, rows, items)


def test_the_ceiling_against_popular_negatives_is_the_ratio(tmp_path):
  config = PrepareConfig(
    synthetic=True, num_events=20_000, negative_sampling='popularity'
  )
  prepare(config, tmp_path / 'dataset')
  dataset = open_dataset(tmp_path / 'dataset')
  part = dataset.parts['test']
  shown = np.concatenate(
    [dataset.item[part.event][:, None], part.candidates], axis=1
  )
  world = World(WorldConfig(num_events=20_000))
  log = world.generate()
  number = {name: row for row, name in enumerate(log.items)}
  names = dataset.raw_items(np.arange(dataset.num_items))
  row = np.array([number[name] for name in names], np.int32)
  preference = world.log_preference(log, part.event, row[shown])
  count = dataset.item_train_count[shown]
  weight = dataset.item_train_count**0.75
  had = [
    sum(weight[item] for item in dataset.item[start:event])
    for start, event in zip(
      dataset.user_start[dataset.user[part.event]], part.event, strict=True
    )
  ]
  # log p - log q, q being of the items that the user has not had.
  with np.errstate(divide='ignore'):
    q = weight[shown] / (weight.sum() - np.array(had))[:, None]
    expected = preference - np.log(q)
  drawn = count > 0
  np.testing.assert_allclose(part.truth[drawn], expected[drawn], rtol=1e-4)
  assert (part.truth[count == 0] > 1_000).all()
  label = np.zeros(shown.shape, np.int8)
  label[:, 0] = 1
  of = lambda score: roc_auc_score(label.ravel(), score.ravel())
  assert of(part.truth) > of(preference) + 0.005
