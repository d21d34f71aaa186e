"""A dataset of a given shape, in memory, for benchmarks.

Its shape is that of Amazon Electronics, on which the libraries that people use
today are measured too: long-tailed items, histories of log-normal length, a
category an item, and four context features. What a step costs follows from the
shape alone, so labels are drawn without regard to it.
"""

from pathlib import Path

import numpy as np

from eain_jax.config import PrepareConfig, WorkloadConfig
from eain_jax.data.dataset import Dataset
from eain_jax.data.examples import Part
from eain_jax.data.features import NUM_RESERVED, Feature

NUM_CATEGORIES, NUM_INTERESTS = 801, 40
CONTEXT_VALUES = {'hour': 24, 'weekday': 7, 'brand': 3_000, 'price': 20}
LENGTH_SIGMA = 0.9
POSITIVE_SHARE = 0.35


def _lengths(
  rng: np.random.Generator, size: int, mean: float, most: int
) -> np.ndarray:
  """int64 [size], log-normal lengths from 1 to `most` of about that mean."""
  normal = rng.normal(0.0, LENGTH_SIGMA, size)
  of_scale = lambda scale: np.clip(
    np.round(np.exp(scale + normal)), 1, most
  ).astype(np.int64)
  low, high = -5.0, np.log(1e3 * most)
  for _ in range(40):
    middle = (low + high) / 2
    too_short = of_scale(middle).mean() < mean
    low, high = (middle, high) if too_short else (low, middle)
  return of_scale(high)


def _draw_items(
  rng: np.random.Generator, interest: np.ndarray, num_items: int
) -> np.ndarray:
  """int32 items: half by popularity, half from the interest's own share."""
  size = len(interest)
  popularity = np.cumsum((np.arange(num_items) + 8.0) ** -0.75)
  rank = np.searchsorted(popularity, rng.random(size) * popularity[-1])
  # Interest g holds items g, g + 40, ...; the square prefers the first.
  within = rng.random(size) ** 2 * -(-num_items // NUM_INTERESTS)
  own = within.astype(np.int64) * NUM_INTERESTS + interest
  is_own = rng.random(size) < 0.5
  item = np.where(is_own & (own < num_items), own, rank)
  # An odd multiplier spreads the popular ones over the table.
  step = 0x9E3779B1
  while np.gcd(step, num_items) != 1:
    step += 2
  return (item * step % num_items).astype(np.int32)


def make_workload(config: WorkloadConfig) -> Dataset:
  """The dataset; it lives in memory alone and has no files.

  `sequences` of them, each the history of one labelled example, its last event
  (with `negatives`, of one request: the event and that many sampled items).
  """
  rng = np.random.default_rng(config.seed)
  length = _lengths(
    rng, config.sequences, config.mean_length, config.history_length
  )
  start = np.concatenate([[0], np.cumsum(length + 1)])
  sequence = np.repeat(np.arange(config.sequences, dtype=np.int32), length + 1)
  interest = rng.integers(0, NUM_INTERESTS, config.sequences)[sequence]
  item = _draw_items(rng, interest, config.items)
  is_next_item = config.negatives > 0
  label = (rng.random(config.sequences) < POSITIVE_SHARE) | is_next_item
  last = start[1:] - 1
  part = Part(
    last,
    last,
    np.arange(config.sequences, dtype=np.int32),
    label.astype(np.int8),
  )
  ids = lambda high, size: rng.integers(
    NUM_RESERVED, high + NUM_RESERVED, size, dtype=np.int32
  )
  num_rows = {
    'user': config.users,
    'item': config.items,
    'category': NUM_CATEGORIES,
    **CONTEXT_VALUES,
  }
  kind = {'user': 'user', 'item': 'item', 'category': 'item'}
  features = tuple(
    Feature(name, kind.get(name, 'context'), rows + NUM_RESERVED)
    for name, rows in num_rows.items()
  )
  prepare_config = PrepareConfig(
    history_length=config.history_length, negatives=max(1, config.negatives)
  )
  examples = config.sequences * (1 + config.negatives)
  positives = int(label.sum())
  counts = {'positives': positives, 'examples': examples}
  return Dataset(
    path=Path('workload'),
    manifest={
      'task': 'next_item' if is_next_item else 'logged',
      'config': prepare_config.to_dict(),
      'counts': {'train': counts},
      'fingerprint': 'workload',
    },
    features=features,
    user=sequence,
    item=item,
    timestamp=np.zeros(len(item), np.int64),
    context_ids={n: ids(v, len(item)) for n, v in CONTEXT_VALUES.items()},
    user_ids=ids(config.users, config.sequences),
    item_ids={
      'item': np.arange(config.items, dtype=np.int32) + NUM_RESERVED,
      'category': ids(NUM_CATEGORIES, config.items),
    },
    item_train_count=np.ones(config.items, np.int64),
    history_event=None,
    history_start=start,
    user_start=start,
    parts={'train': part},
  )
