"""Synthetic raw files are Amazon's, to the reader, and the same each time."""

import json

import numpy as np

from eain_jax.benchmark.raw_files import write_raw_files
from eain_jax.config import PrepareConfig
from eain_jax.data.prepare import prepare


def test_the_files_are_read_without_a_rejected_line(tmp_path):
  reviews, metadata = write_raw_files(tmp_path, 2_000, seed=3)
  lines = reviews.read_text().splitlines()
  assert len(lines) == 2_000
  assert 490 < np.mean([len(line) for line in lines]) < 590
  items = [json.loads(line)['asin'] for line in lines]
  assert items == sorted(items, key=items.index)  # grouped by item
  manifest = prepare(
    PrepareConfig(reviews=(str(reviews),), metadata=(str(metadata),)),
    tmp_path / 'dataset',
  )
  assert manifest['counts']['lines'] == 2_000
  assert manifest['counts']['rejected'] == 0
  assert {source['format'] for source in manifest['sources']} == {
    'amazon-2014-reviews',
    'amazon-2014-metadata',
  }


def test_the_seed_decides_the_files(tmp_path):
  texts = []
  for name, seed in (('a', 1), ('b', 1), ('c', 2)):
    (tmp_path / name).mkdir()
    paths = write_raw_files(tmp_path / name, 1_000, seed)
    texts.append([path.read_bytes() for path in paths])
  assert texts[0] == texts[1] != texts[2]
