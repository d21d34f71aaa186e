"""Skip Above (16-17) as a setting of training, on a dataset as it is.

Where negatives are sampled, what a dataset holds of Skip Above is a number a
request: how many of them stand above the positive in a simulated order. So
training can go by it, or not, however the dataset was prepared.
"""

import dataclasses

import numpy as np

from eain_jax.data.columns import row_blocks
from eain_jax.data.dataset import Dataset
from eain_jax.data.examples import simulate_kept_negatives
from eain_jax.errors import InputError

NOTE = (
  'Skip Above works on a simulated order: the positive stands at a uniform '
  'place among its training negatives. Evaluation keeps all candidates.'
)


def has_skip_above(dataset: Dataset) -> bool:
  """Whether training on the dataset, as it is, goes by Skip Above."""
  if dataset.task == 'next_item':
    return dataset.parts['train'].kept_negatives is not None
  return dataset.config.skip_above


def with_skip_above(dataset: Dataset, choice: str) -> Dataset:
  """The dataset as if it had been prepared with or without --skip_above.

  Training negatives, their counts and what is noted of them are those of such
  a dataset; `config` stays what it was prepared with, `fingerprint` what is on
  the disk.

  Args:
    dataset: an open dataset.
    choice: of `TrainConfig.skip_above`.

  Raises:
    InputError: its negatives are not sampled, and it was prepared otherwise.
  """
  if choice == 'dataset' or has_skip_above(dataset) == (choice == 'on'):
    return dataset
  if dataset.task != 'next_item':
    raise InputError(
      f'--skip_above={choice} needs sampled negatives, and {dataset.path} has '
      f'the task {dataset.task}: prepare the dataset with'
      f'{"out" if choice == "off" else ""} --skip_above'
    )
  part, num_negatives = dataset.parts['train'], dataset.config.negatives
  kept, num_kept = None, len(part) * num_negatives
  if choice == 'on':
    kept = np.empty(len(part), np.int16)
    for rows in row_blocks(len(part)):
      kept[rows] = simulate_kept_negatives(
        dataset.config.seed, part.event[rows], num_negatives
      )
    num_kept = int(kept.sum(dtype=np.int64))
  counts = dataset.manifest['counts']
  notes = [note for note in dataset.manifest['notes'] if note != NOTE]
  manifest = {
    **dataset.manifest,
    'notes': [*notes, NOTE] if choice == 'on' else notes,
    'counts': {
      **counts,
      'train': {
        **counts['train'],
        'examples': counts['train']['positives'] + num_kept,
        'dropped_by_skip_above': len(part) * num_negatives - num_kept,
      },
    },
  }
  parts = {
    **dataset.parts,
    'train': dataclasses.replace(part, kept_negatives=kept),
  }
  return dataclasses.replace(dataset, manifest=manifest, parts=parts)
