"""Synthetic raw files in the format of McAuley's Amazon data of 2014.

Only their shape is Amazon's: lines of about 540 bytes, long-tailed items, users
of five reviews and more, days in no order, metadata as Python literals.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

# Amazon Electronics, 5-core: 1,689,188 reviews of 192,403 users, 63,001 items.
REVIEWS_A_USER, FEWEST_REVIEWS, REVIEWS_AN_ITEM = 8.78, 5, 26.8
FIRST_DAY, LAST_DAY = 12_731, 16_273  # 2004-11-09 to 2014-07-22
STAR_SHARES = (0.065, 0.05, 0.085, 0.2, 0.6)
NUM_CATEGORIES, NUM_BRANDS, RELATED_ITEMS = 801, 3_000, 20
WORDS_A_REVIEW, WORDS_A_SUMMARY, WORDS_A_DESCRIPTION = 64, 5, 30
VOCABULARY = 20_000


def _words(rng: np.random.Generator) -> list[str]:
  """Words of 1 to 9 letters, the frequent ones shorter."""
  letters = np.array(list('etaoinshrdlcumwfgypb'))
  lengths = np.clip(rng.poisson(np.linspace(3, 7, VOCABULARY)), 1, 9)
  return [''.join(rng.choice(letters, n)) for n in lengths]


def _phrases(
  rng: np.random.Generator, words: list[str], lengths: np.ndarray
) -> list[str]:
  rank = rng.zipf(1.25, lengths.sum()) % len(words)
  bounds = np.cumsum(lengths)
  return [
    ' '.join(words[word] for word in part)
    for part in np.split(rank, bounds[:-1])
  ]


def _item_id(item: int) -> str:
  return f'B{item:09d}'


def _review_lines(
  rng: np.random.Generator, words: list[str], num_reviews: int, num_items: int
) -> Iterator[str]:
  num_users = max(1, round(num_reviews / REVIEWS_A_USER))
  more = REVIEWS_A_USER - FEWEST_REVIEWS + 1
  count = FEWEST_REVIEWS - 1 + rng.geometric(1 / more, num_users)
  # Too few in all are filled up at random, too many cut off.
  missing = max(0, num_reviews - int(count.sum()))
  np.add.at(count, rng.integers(0, num_users, missing), 1)
  user = np.repeat(np.arange(num_users), count)[:num_reviews]
  popularity = (np.arange(num_items) + 8.0) ** -0.75
  rank = rng.choice(num_items, num_reviews, p=popularity / popularity.sum())
  item = rng.permutation(num_items)[rank]
  day = rng.integers(FIRST_DAY, LAST_DAY, num_reviews)
  stars = rng.choice(5, num_reviews, p=STAR_SHARES) + 1.0
  lengths = np.clip(rng.poisson(WORDS_A_REVIEW, num_reviews), 5, None)
  # The files are grouped by item.
  for rows in np.array_split(
    np.argsort(item, kind='stable'), -(-num_reviews // 50_000)
  ):
    texts = _phrases(rng, words, lengths[rows])
    summaries = _phrases(rng, words, np.full(len(rows), WORDS_A_SUMMARY))
    for row, text, summary in zip(rows, texts, summaries, strict=True):
      seconds = int(day[row]) * 86_400
      date = datetime.fromtimestamp(seconds, UTC)
      votes = int(rng.integers(0, 10))
      yield json.dumps(
        {
          'reviewerID': f'A{user[row]:013d}',
          'asin': _item_id(int(item[row])),
          'reviewerName': f'Reviewer "{user[row]}"',
          'helpful': [votes // 2, votes],
          'reviewText': f'{text}.',
          'overall': float(stars[row]),
          'summary': summary,
          'unixReviewTime': seconds,
          'reviewTime': f'{date:%m} {date.day}, {date.year}',
        }
      )


def _metadata_lines(
  rng: np.random.Generator, words: list[str], num_items: int
) -> Iterator[str]:
  descriptions = _phrases(rng, words, np.full(num_items, WORDS_A_DESCRIPTION))
  for item, description in enumerate(descriptions):
    category = int(rng.integers(0, NUM_CATEGORIES))
    related = rng.integers(0, num_items, RELATED_ITEMS)
    name = _item_id(item)
    yield repr(
      {
        'asin': name,
        'imUrl': f'http://ecx.images-amazon.com/images/I/{name}.jpg',
        'description': f"{description}, isn't it",
        'title': ' '.join(description.split()[:8]),
        'price': round(float(rng.gamma(2.0, 30.0)), 2),
        'salesRank': {'Electronics': int(rng.integers(1, 500_000))},
        'brand': f'Brand {rng.integers(0, NUM_BRANDS)}',
        'related': {'also_bought': [_item_id(other) for other in related]},
        'categories': [
          ['Electronics', f'Shelf {category % 5}', f'Category {category}']
        ],
      }
    )


def write_raw_files(
  folder: Path, num_reviews: int, seed: int
) -> tuple[Path, Path]:
  """Writes reviews and metadata; the paths of both. A pure function of seed."""
  rng = np.random.default_rng(seed)
  words = _words(rng)
  # No user may have had nearly all of them, for want of negatives.
  num_items = max(500, round(num_reviews / REVIEWS_AN_ITEM))
  paths = (folder / 'reviews.json', folder / 'meta.json')
  lines = (
    _review_lines(rng, words, num_reviews, num_items),
    _metadata_lines(rng, words, num_items),
  )
  for path, content in zip(paths, lines, strict=True):
    with path.open('w') as file:
      file.writelines(f'{line}\n' for line in content)
  return paths
