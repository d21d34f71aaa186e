"""From a source to a prepared dataset: the steps in their order."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import eain_jax
from eain_jax.artifacts import refuse_existing
from eain_jax.config import PrepareConfig
from eain_jax.data import examples, features, skip_above
from eain_jax.data.amazon import METADATA_ATTRIBUTES, read_amazon
from eain_jax.data.columns import release, row_blocks
from eain_jax.data.dataset import (
  DatasetWriter,
  dataset_written_whole,
  refuse_small_disk,
)
from eain_jax.data.events import EventLog, k_core
from eain_jax.data.lines import read_options
from eain_jax.data.log_files import read_log
from eain_jax.data.log_values import parse_columns
from eain_jax.data.soundness import FEATURE_NAME
from eain_jax.data.survey import Survey, survey_events, user_blocks
from eain_jax.data.synthetic import MIN_USER_EVENTS, World, WorldConfig
from eain_jax.errors import InputError

NO_REJECTED = pl.DataFrame(
  schema={
    'file': pl.String,
    'line': pl.Int64,
    'reason': pl.String,
    'text': pl.String,
  }
)


def _check_source(config: PrepareConfig) -> None:
  """Raises InputError where the flags of the sources do not fit together."""
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
  ]:
    needed = config.items if owner == '--items' else owner == named[0]
    if given and not needed:
      raise InputError(f'{flag} goes with {owner}, which is not given')
  if config.synthetic and config.k_core:
    raise InputError(
      '--k_core cannot be used with --synthetic: the true preference is '
      'known for the whole world alone'
    )
  if config.items and not (config.item_key and config.item_attributes):
    raise InputError('--items needs --item_key and --item_attributes')
  if config.item_attributes and not (config.items or config.metadata):
    raise InputError(
      '--item_attributes goes with --items or --metadata, and neither is given'
    )
  attributes = config.item_attributes
  if twice := [name for name in attributes if attributes.count(name) > 1]:
    raise InputError(f'--item_attributes names {twice[0]} twice')
  unknown = [name for name in attributes if name not in METADATA_ATTRIBUTES]
  if config.metadata and unknown:
    raise InputError(
      f'--item_attributes={unknown[0]} is none of those that are taken from '
      f'--metadata: {", ".join(METADATA_ATTRIBUTES)}'
    )


def _read_files(
  config: PrepareConfig, folder: Path
) -> tuple[EventLog, pl.DataFrame]:
  """The events of files, cleaned, and the lines that were rejected.

  `folder` is where events are kept on the way.
  """
  options = read_options(config)
  if config.reviews:
    log, rejected = read_amazon(
      config.reviews, config.metadata, options, folder, config.item_attributes
    )
  else:
    log, rejected = read_log(
      config.events,
      parse_columns(config.columns),
      options,
      items=config.items or None,
      item_key=config.item_key or None,
      item_attributes=config.item_attributes,
      folder=folder,
    )
  if config.k_core:
    log = k_core(log, config.k_core, folder)
  return log, rejected


def _least_bytes(config: PrepareConfig, world: World, split: str) -> int:
  """What the events and the candidates of a world's dataset take at least."""
  sizes = world.config
  evaluated = {'last_out': 2, 'last_out_no_validation': 1}.get(split, 0)
  if config.min_history >= MIN_USER_EVENTS - 1:
    evaluated = 0
  # User, item and time; ids of the candidates, and what truth says of them.
  return 16 * sizes.num_events + evaluated * sizes.num_users * (
    8 * config.eval_negatives
  )


def _write_events(writer: DatasetWriter, source: EventLog | World) -> EventLog:
  """Writes the events' own columns; the log is mapped from those."""
  names = ('events.user', 'events.item', 'events.timestamp')
  if isinstance(source, World):
    for *events, device in source.blocks():
      for name, rows in zip(names, events, strict=True):
        writer.append(name, rows)
      writer.scratch.append('device', device)
    user, item, timestamp = map(writer.map, names)
    return source.log(user, item, timestamp, writer.scratch.map('device'))
  for rows in row_blocks(len(source.user)):
    for name, column in zip(
      names, (source.user, source.item, source.timestamp), strict=True
    ):
      writer.append(name, column[rows])
      release(column)
  user, item, timestamp = map(writer.map, names)
  return dataclasses.replace(source, user=user, item=item, timestamp=timestamp)


def _choose_protocol(
  config: PrepareConfig, source: EventLog | World
) -> tuple[str, str, int]:
  """task, split and min_history, with 'auto' resolved."""
  has_label = has_rating = has_position = False
  if not isinstance(source, World):
    has_label, has_rating = source.label is not None, source.rating is not None
    has_position = source.position is not None
  task = config.task
  if task == 'auto':
    task = 'logged' if has_label else 'next_item'
  if task == 'logged' and not has_label:
    raise InputError(
      '--task=logged needs labels: name their column, --columns=..,label=..'
    )
  if task == 'rating' and not has_rating:
    raise InputError(
      '--task=rating needs ratings, and this source has none; name their '
      'column, --columns=..,rating=..'
    )
  if config.skip_above and task != 'next_item' and not has_position:
    raise InputError(
      f'--skip_above of --task={task} needs the positions of what was shown: '
      + (
        'reviews have none, use --task=next_item'
        if config.reviews
        else 'name their column, --columns=..,position=..'
      )
    )
  split = config.split
  if split == 'auto':
    split = 'time' if task == 'logged' else 'last_out'
  min_history = config.min_history
  if min_history < 0:
    min_history = 0 if task == 'logged' else 1
  return task, split, min_history


def _refuse_negatives(label: np.ndarray) -> None:
  """Raises InputError where events are no positives, and would become some."""
  if number := int(np.count_nonzero(label == 0)):
    raise InputError(
      f'--task=next_item takes every event for a positive, and {number:,} of '
      f'{len(label):,} have label 0: use --task=logged, or leave those lines '
      'out'
    )


def _labels(config: PrepareConfig, log: EventLog, task: str) -> np.ndarray:
  """int8 [N]."""
  if task == 'logged':
    assert log.label is not None
    return log.label
  if task == 'rating':
    assert log.rating is not None
    return (log.rating >= config.rating_threshold).astype(np.int8)
  return np.ones(len(log.user), np.int8)


def _write_examples(
  writer: DatasetWriter,
  config: PrepareConfig,
  log: EventLog,
  survey: Survey,
  id_of_code: Mapping[str, np.ndarray],
  *,
  task: str,
  split: str,
  min_history: int,
  true_preference: Callable[[np.ndarray, np.ndarray], np.ndarray] | None,
) -> tuple[dict[str, examples.ExampleCounts], np.ndarray]:
  """Writes context ids, histories and parts, some users at a time.

  Returns:
    The counts of each part that is written; and int64 [U + 1], where the
    history of each user begins.
  """
  sampler = None
  if task == 'next_item':
    sampler = examples.make_sampler(
      log.item,
      survey.user_start,
      survey.item_count,
      sampling=config.negative_sampling,
      exponent=config.popularity_exponent,
      exclusion=config.negative_exclusion,
      seed=config.seed,
    )
  counts = {
    name: examples.ExampleCounts()
    for name in examples.PARTS
    if name != 'valid' or split != 'last_out_no_validation'
  }
  history_start = survey.user_start
  if task == 'logged':
    history_start = np.zeros(len(log.users) + 1, np.int64)
  num_positives = 0
  for block in user_blocks(log, survey.user_start):
    events, first = block.log, block.rows.start
    request = survey.requests(block.rows)
    begin = None if task == 'next_item' else features.begins(request)
    for name, ids in id_of_code.items():
      codes = features.context_codes(events, name, begin)
      writer.append(f'context.{name}', ids[codes])
    label = _labels(config, events, task)
    # Of next_item an event's history ends where the event stands; else a
    # request is judged with what its user did before it, never within it.
    history_end = np.arange(first, block.rows.stop)
    if begin is not None:
      history_end = first + begin
    if task == 'logged':
      before = num_positives + np.concatenate([[0], np.cumsum(label == 1)])
      writer.append('history.event', first + np.flatnonzero(label == 1))
      of_user = survey.user_start[block.users.start : block.users.stop + 1]
      history_start[block.users.start : block.users.stop + 1] = before[
        of_user - first
      ]
      history_end = before[history_end - first]
      num_positives = int(before[-1])
    made = examples.Block(
      first,
      events,
      request,
      label,
      survey.part[block.rows],
      history_end,
      history_end - history_start[events.user] >= min_history,
    )
    for name in counts:
      number = examples.PARTS.index(name)
      part, part_counts = examples.make_part(
        made,
        number,
        task=task,
        # A test part that its own labels have thinned would be another task.
        use_skip_above=config.skip_above and not number,
        num_negatives=config.negatives if not number else config.eval_negatives,
        sampler=sampler,
        seed=config.seed,
        true_preference=true_preference,
      )
      num_requests = np.int32(counts[name].requests)
      part = dataclasses.replace(part, request=part.request + num_requests)
      for field in dataclasses.fields(part):
        column = getattr(part, field.name)
        same = field.name == 'history_end' and task == 'next_item'
        if column is not None and not same:
          writer.append(f'{name}.{field.name}', column)
      counts[name] += part_counts
  return counts, history_start


def _protocol_notes(task: str, split: str, config: PrepareConfig) -> list[str]:
  notes = []
  if task == 'next_item':
    notes.append(
      'Requests are simulated: each event with sampled negatives. The source '
      'has no impressions.'
    )
    if config.skip_above:
      notes.append(skip_above.NOTE)
  elif config.skip_above:
    notes.append(
      'Skip Above works on the training part alone; evaluation keeps every '
      'example. So training has fewer negatives a positive than what is '
      'evaluated: probabilities come out too high there, which logloss and '
      'calibration show.'
    )
  if split == 'last_out_no_validation':
    notes.append(
      'last_out_no_validation: the model is selected on the test part, as DIN '
      'and BARS do; results are optimistic and compare with published numbers '
      'only.'
    )
  return notes


def _lost_attributes(
  config: PrepareConfig, log: EventLog, item_ids: Mapping[str, np.ndarray]
) -> list[str]:
  """Notes of attributes that are no features, for want of values.

  Raises:
    InputError: a log has none of a column that was named.
  """
  notes = []
  for column in log.item_attributes:
    if column.name in item_ids:
      continue
    if column.null_count() < len(column):
      notes.append(
        f'No item of a training event has a {column.name}: left out.'
      )
    elif config.items:
      raise InputError(
        f'--item_attributes={column.name}: no item that is left has a value'
      )
  return notes


def _check_names(found: list[features.Feature]) -> None:
  """Feature names become names of files and tables, so they must be plain."""
  seen = set()
  for feature in found:
    if not FEATURE_NAME.fullmatch(feature.name):
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
  _check_source(config)
  source, rejected = None, NO_REJECTED
  if config.synthetic:
    source = World(WorldConfig(num_events=config.num_events, seed=config.seed))
    task, split, min_history = _choose_protocol(config, source)
    refuse_small_disk(output_dir, _least_bytes(config, source, split))
  with dataset_written_whole(output_dir) as writer:
    if source is None:
      source, rejected = _read_files(config, writer.scratch.folder)
      task, split, min_history = _choose_protocol(config, source)
      if task == 'next_item' and source.label is not None:
        _refuse_negatives(source.label)
    log = _write_events(writer, source)
    true_preference = None
    if isinstance(source, World):
      true_preference = source.scorer(log)
    del source
    context_names = tuple(
      name for name in config.context if name != 'quarter' or split != 'time'
    )
    survey = survey_events(
      log,
      task=task,
      split=split,
      time_fractions=config.time_fractions,
      context=features.context_values(log, context_names),
    )
    user_ids, user_feature, user_vocabulary = features.encode_users(
      log.users, survey.user_count, config.min_count
    )
    item_ids, item_features, item_vocabularies = features.encode_items(
      log.items, log.item_attributes, survey.item_count, config.min_count
    )
    id_of_code, context_features, context_vocabularies, constant = (
      features.encode_context(
        features.context_values(log, context_names),
        survey.context_seen,
        survey.context_count,
        config.min_count,
      )
    )
    all_features = [user_feature, *item_features, *context_features]
    _check_names(all_features)
    notes = [*log.notes, *_protocol_notes(task, split, config)]
    notes += _lost_attributes(config, log, item_ids)
    if len(context_names) < len(config.context):
      notes.append(
        'quarter is left out of --split=time: those of the test part are later '
        'than what is trained on.'
      )
    if constant:
      notes.append(
        f'{", ".join(constant)} of one value in all of the data: left out.'
      )
    if config.reviews:
      notes.append(
        'Amazon reviews have no device and no location: none is made up.'
      )
    part_counts, history_start = _write_examples(
      writer,
      config,
      log,
      survey,
      id_of_code,
      task=task,
      split=split,
      min_history=min_history,
      true_preference=true_preference,
    )
    counts: dict[str, Any] = dict(log.counts)
    for name, part_count in part_counts.items():
      counts[name] = part_count.to_dict()
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
    writer.append('users.id', user_ids)
    writer.append('users.start', survey.user_start)
    writer.append('history.start', history_start)
    writer.append('items.train_count', survey.item_count)
    for name, ids in item_ids.items():
      writer.append(f'item_ids.{name}', ids)
    item_table = {
      'item': log.items,
      'train_count': survey.item_count,
      **{
        f'{name}_id': pl.Series(ids).arr.to_list() if ids.ndim == 2 else ids
        for name, ids in item_ids.items()
      },
    }
    return writer.finish(
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
        'first_timestamp': survey.first_timestamp,
        'last_timestamp': survey.last_timestamp,
      },
      features=all_features,
      vocabularies={
        'user': user_vocabulary,
        **item_vocabularies,
        **context_vocabularies,
      },
      users=pl.DataFrame(
        {
          'user': log.users,
          'user_id': user_ids,
          'events': np.diff(survey.user_start),
        }
      ),
      items=pl.DataFrame(item_table),
      rejected=rejected,
    )
