"""From a source to a prepared dataset: the steps in their order."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import eain_jax
from eain_jax.config import PrepareConfig
from eain_jax.data import examples, features
from eain_jax.data.amazon import read_amazon
from eain_jax.data.dataset import refuse_existing, write_dataset
from eain_jax.data.events import EventLog, k_core
from eain_jax.data.lines import ReadOptions
from eain_jax.data.log_files import read_log
from eain_jax.data.synthetic import World, WorldConfig
from eain_jax.errors import InputError

NO_REJECTED = pl.DataFrame(
  schema={
    'file': pl.String,
    'line': pl.Int64,
    'reason': pl.String,
    'text': pl.String,
  }
)


def _parse_columns(columns: tuple[str, ...]) -> dict[str, str]:
  """name=column pairs as a dict; a name given twice is an error."""
  pairs = {}
  for text in columns:
    name, equals, column = text.partition('=')
    if not (name and equals and column):
      raise InputError(f'--columns holds {text!r}: write it as name=column')
    if name in pairs:
      raise InputError(f'--columns names {name} twice')
    pairs[name] = column
  return pairs


def _read_source(
  config: PrepareConfig,
) -> tuple[EventLog, pl.DataFrame, World | None]:
  """The events of the one source that the config names."""
  named = [
    flag
    for flag, given in [
      ('--reviews', config.reviews),
      ('--events', config.events),
      ('--synthetic', config.synthetic),
    ]
    if given
  ]
  if len(named) != 1:
    raise InputError(
      'name exactly one source, --reviews, --events or --synthetic; given: '
      + (' and '.join(named) or 'none')
    )
  for flag, given, owner in [
    ('--metadata', config.metadata, '--reviews'),
    ('--columns', config.columns, '--events'),
    ('--items', config.items, '--events'),
    ('--item_key', config.item_key, '--items'),
    ('--item_attributes', config.item_attributes, '--items'),
  ]:
    needed = config.items if owner == '--items' else owner == named[0]
    if given and not needed:
      raise InputError(f'{flag} goes with {owner}, which is not given')
  if config.synthetic:
    if config.k_core:
      raise InputError(
        '--k_core cannot be used with --synthetic: the true preference is '
        'known for the whole world alone'
      )
    world = World(WorldConfig(num_events=config.num_events, seed=config.seed))
    return world.generate(), NO_REJECTED, world
  options = ReadOptions(config.allow_truncated, config.max_rejected)
  if config.reviews:
    log, rejected = read_amazon(config.reviews, config.metadata, options)
    return log, rejected, None
  if config.items and not (config.item_key and config.item_attributes):
    raise InputError('--items needs --item_key and --item_attributes')
  log, rejected = read_log(
    config.events,
    _parse_columns(config.columns),
    options,
    items=config.items or None,
    item_key=config.item_key or None,
    item_attributes=config.item_attributes,
  )
  return log, rejected, None


def _choose_protocol(
  config: PrepareConfig, log: EventLog
) -> tuple[str, str, int]:
  """task, split and min_history, with 'auto' resolved."""
  task = config.task
  if task == 'auto':
    task = 'logged' if log.label is not None else 'next_item'
  if task == 'logged' and log.label is None:
    raise InputError(
      '--task=logged needs labels: name their column, --columns=..,label=..'
    )
  if task == 'rating' and log.rating is None:
    raise InputError(
      '--task=rating needs ratings, and this source has none; name their '
      'column, --columns=..,rating=..'
    )
  split = config.split
  if split == 'auto':
    split = 'time' if task == 'logged' else 'last_out'
  min_history = config.min_history
  if min_history < 0:
    min_history = 0 if task == 'logged' else 1
  return task, split, min_history


def _labels(config: PrepareConfig, log: EventLog, task: str) -> np.ndarray:
  """int8 [N]."""
  if task == 'logged':
    assert log.label is not None
    return log.label
  if task == 'rating':
    assert log.rating is not None
    return (log.rating >= config.rating_threshold).astype(np.int8)
  return np.ones(len(log.user), np.int8)


def _histories(
  log: EventLog, task: str, request: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
  """What histories are made of, where each user's begins, where each ends.

  Returns:
    event rows int64 [M] (None: every event), start int64 [U + 1] and end
    int64 [N], both into the former.
  """
  start = examples.user_offsets(log.user, len(log.users))
  rows = np.arange(len(log.user), dtype=np.int64)
  if task == 'next_item':
    return None, start, rows
  # A request is judged with what its user did before it, never within it.
  order = np.full(int(request.max(initial=-1)) + 1, len(rows), np.int64)
  np.minimum.at(order, request, rows)
  first = order[request]
  if task == 'rating':
    return None, start, first
  positives_before = np.concatenate([[0], np.cumsum(label == 1)])
  positive = np.flatnonzero(label == 1)
  return positive, positives_before[start], positives_before[first]


def _protocol_notes(task: str, split: str, config: PrepareConfig) -> list[str]:
  notes = []
  if task == 'next_item':
    notes.append(
      'Requests are simulated: each event with sampled negatives. The source '
      'has no impressions.'
    )
    if config.skip_above:
      notes.append(
        'Skip Above works on a simulated order: the positive stands at a '
        'uniform place among its training negatives. Evaluation keeps all '
        'candidates.'
      )
  if split == 'last_out_no_validation':
    notes.append(
      'last_out_no_validation: the model is selected on the test part, as DIN '
      'and BARS do; results are optimistic and compare with published numbers '
      'only.'
    )
  return notes


def _check_names(found: list[features.Feature]) -> None:
  """Feature names become names of files and tables, so they must be plain."""
  seen = set()
  for feature in found:
    if not re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_.-]*', feature.name):
      raise InputError(
        f'{feature.name!r} cannot name a feature: use letters, digits, _ . - '
        'or rename the column'
      )
    if feature.name in seen:
      raise InputError(
        f'two features are named {feature.name}: rename one of the columns, '
        'or leave a time feature out with --context'
      )
    seen.add(feature.name)


def prepare(config: PrepareConfig, output_dir: str | Path) -> dict[str, Any]:
  """Reads a source, makes a dataset at `output_dir`, returns its manifest.

  Raises:
    InputError: bad input; nothing is written then.
  """
  output_dir = Path(output_dir)
  refuse_existing(output_dir)
  log, rejected, world = _read_source(config)
  if config.k_core:
    log = k_core(log, config.k_core)
  task, split, min_history = _choose_protocol(config, log)
  label = _labels(config, log, task)
  request = examples.make_requests(log, task)
  part_of_event = examples.split_requests(
    request, log.user, log.timestamp, split, config.time_fractions
  )
  train_rows = part_of_event == 0

  user_ids, user_feature, user_vocabulary = features.encode_users(
    log, train_rows, config.min_count
  )
  item_ids, item_features, item_vocabularies = features.encode_items(
    log, train_rows, config.min_count
  )
  context_ids, context_features, context_vocabularies, constant = (
    features.encode_context(log, config.context, train_rows, config.min_count)
  )
  all_features = [user_feature, *item_features, *context_features]
  _check_names(all_features)
  notes = [*log.notes, *_protocol_notes(task, split, config)]
  if constant:
    notes.append(
      f'{", ".join(constant)} of one value in all of the data: left out.'
    )
  if config.reviews:
    notes.append(
      'Amazon reviews have no device and no location: none is made up.'
    )

  history_event, history_start, history_end = _histories(
    log, task, request, label
  )
  has_history = history_end - history_start[log.user] >= min_history
  user_start = examples.user_offsets(log.user, len(log.users))
  train_count = np.bincount(log.item[train_rows], minlength=len(log.items))
  sampler = None
  if task == 'next_item':
    sampler = examples.make_sampler(
      log.item,
      user_start,
      train_count,
      sampling=config.negative_sampling,
      exponent=config.popularity_exponent,
      exclusion=config.negative_exclusion,
      seed=config.seed,
    )
  parts: dict[str, examples.Part] = {}
  counts: dict[str, Any] = dict(log.counts)
  for number, name in enumerate(examples.PARTS):
    if split == 'last_out_no_validation' and name == 'valid':
      continue
    parts[name], part_counts = examples.make_part(
      log,
      np.flatnonzero(part_of_event == number),
      task=task,
      request=request,
      label=label,
      history_end=history_end,
      has_history=has_history,
      use_skip_above=config.skip_above,
      num_negatives=config.negatives if number == 0 else config.eval_negatives,
      sampler=sampler,
      is_training=number == 0,
      seed=config.seed,
      true_preference=None
      if world is None
      else lambda event, item: world.log_preference(log, event, item),
    )
    counts[name] = part_counts.to_dict()
  part_files = {name: name for name in examples.PARTS}
  if split == 'last_out_no_validation':
    counts['valid'] = counts['test']
    part_files['valid'] = 'test'
  for name in examples.PARTS:
    if not counts[name]['positives']:
      raise InputError(
        f'the {name} part has no positive example: {len(log.users)} user(s) '
        f'and {len(log.user)} events are too few for --split={split} with '
        f'--min_history={min_history}'
      )

  columns = {
    'events.user': log.user,
    'events.item': log.item,
    'events.timestamp': log.timestamp,
    'users.id': user_ids,
    'users.start': user_start,
    'history.start': history_start,
    'items.train_count': train_count,
  }
  if history_event is not None:
    columns['history.event'] = history_event
  columns |= {f'context.{name}': ids for name, ids in context_ids.items()}
  columns |= {f'item_ids.{name}': ids for name, ids in item_ids.items()}
  for name, part in parts.items():
    for field in dataclasses.fields(part):
      column = getattr(part, field.name)
      # For next_item an event's history ends where the event stands.
      same = field.name == 'history_end' and task == 'next_item'
      if column is not None and not same:
        columns[f'{name}.{field.name}'] = column
  item_table = {
    'item': log.items,
    'train_count': train_count,
    **{
      f'{name}_id': pl.Series(ids).arr.to_list() if ids.ndim == 2 else ids
      for name, ids in item_ids.items()
    },
  }
  return write_dataset(
    output_dir,
    manifest={
      'version': eain_jax.__version__,
      'task': task,
      'split': split,
      'min_history': min_history,
      'seed': config.seed,
      'config': config.to_dict(),
      'counts': counts,
      'sources': [dict(source) for source in log.sources],
      'notes': notes,
      'part_files': part_files,
      'first_timestamp': int(log.timestamp.min()),
      'last_timestamp': int(log.timestamp.max()),
    },
    features=all_features,
    vocabularies={
      'user': user_vocabulary,
      **item_vocabularies,
      **context_vocabularies,
    },
    columns=columns,
    users=pl.DataFrame(
      {'user': log.users, 'user_id': user_ids, 'events': np.diff(user_start)}
    ),
    items=pl.DataFrame(item_table),
    rejected=rejected,
  )
