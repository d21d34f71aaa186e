"""A trained model as files that outlive this library; see `export_run`.

The program is StableHLO with parameters and batch as its inputs, so one folder
serves CPUs, GPUs and TPUs and any number of rows. A row has one candidate.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
from jax import export
from safetensors.numpy import save

import eain_jax
from eain_jax.artifacts import (
  folder_written_whole,
  hash_values,
  write_manifest,
)
from eain_jax.data.batches import Batch
from eain_jax.data.dataset import Dataset
from eain_jax.data.features import Feature
from eain_jax.data.lines import hash_file
from eain_jax.models import Model
from eain_jax.serving import export_loader
from eain_jax.serving.candidates import Rows
from eain_jax.serving.encoder import Asked, Encoder
from eain_jax.serving.lookup import RawIds, raw_ids, time_features
from eain_jax.serving.scorer import ask_rows
from eain_jax.training.restore import Run
from eain_jax.training.step import make_score_step

FORMAT_VERSION = 1
PLATFORMS = ('cpu', 'cuda', 'tpu')
FACTS, PROGRAM, PARAMETERS = (
  'export.json',
  'score.stablehlo',
  'parameters.safetensors',
)
GOLDEN_ROWS, GOLDEN_BATCH = 'golden.jsonl', 'golden.npz'
TABLES_HASH = 'tables'
LOADER, README = 'load.py', 'README.md'
# Requests of the test part that the golden batch is made of, at most.
NUM_GOLDEN = 24

# Of a batch what scores need; symbols: R rows, N history events, U items.
_SHAPES: dict[str, tuple[str | int, ...]] = {
  'user': ('R',),
  'target': ('R', 1),
  'history': ('N',),
  'segment': ('N',),
  'age': ('N',),
  'position': ('R',),
  'row': ('R',),
}
_MEANINGS = {
  'user': 'id of the user, of vocabularies/user.csv; 1: unknown',
  'target': "place in [0, U) of the row's item among the batch's items",
  'history': "places in [0, U) of the histories' items, those of row 0 first, "
  'the newest history_length events of each, the oldest first; then 0, for '
  'padding, of which there may be any number; N is at least 1',
  'segment': 'row that each history event belongs to, non-decreasing; R for '
  'padding',
  'age': "UTC dates from each history event to its row's time, 0 on one date, "
  'as the bit length of their number, at most 10; 0 for padding',
  'position': 'how many events the whole history of the row has',
  'row': '0, 1, ..., R - 1',
}
_TIMES = {
  'hour': '0 to 23, UTC',
  'weekday': 'Mon to Sun, UTC',
  'month': '1 to 12, UTC',
  'quarter': 'as 2014 Q3, UTC',
  'gap': "whole days of 24 hours since the history's last event: first event "
  'where there is none, 0, 1, 2-3, 4-7, ..., 256-511, 512 or more',
}
# Of logits, relative where they are beyond 1; bfloat16 rounds as batches lie.
_TOLERANCES = {'float32': 1e-5, 'bfloat16': 5e-2}
# Read with every row; a manifest can be written anew by whoever changes them.
_TABLES = ('users.parquet', 'items.parquet')


def flatten(tree: Any) -> dict[str, Any]:
  """The leaves of nested dicts by their paths, as 'tables/item'."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """The nested dicts that `flatten` was given; empty ones are gone."""
  tree: dict[str, Any] = {}
  for name, leaf in leaves.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def flat_batch(batch: Batch) -> dict[str, np.ndarray]:
  """Of a batch of one candidate a row, what the exported program takes."""
  flat = flatten(batch)
  unused = {'label', 'weight'}
  return {name: leaf for name, leaf in flat.items() if name not in unused}


def input_specs(
  features: Sequence[Feature], time_features: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
  """The program's batch: by name dtype, shape with symbols, and meaning.

  `time_features` are those that follow from a row's time.
  """
  inputs: dict[str, dict[str, Any]] = {
    name: {'shape': list(shape), 'meaning': _MEANINGS[name]}
    for name, shape in _SHAPES.items()
  }
  for feature in features:
    what = f'ids of vocabularies/{feature.name}.csv; 1: unknown'
    if feature.kind == 'item':
      shape = ['U', feature.max_values] if feature.multi_valued else ['U']
      inputs[f'items/{feature.name}'] = {
        'shape': shape,
        'meaning': f"{what}, 0: none; of the batch's distinct items, the first "
        'of which is padding, 0',
      }
    elif feature.kind == 'context':
      of_time = (
        f', of the time: {_TIMES[feature.name]}'
        if (feature.name in time_features)
        else ''
      )
      inputs[f'context/{feature.name}'] = {
        'shape': ['R'],
        'meaning': what + of_time,
      }
  return {name: {'dtype': 'int32', **inputs[name]} for name in sorted(inputs)}


def make_program(
  model: Model,
  features: Sequence[Feature],
  parameters: Mapping[str, np.ndarray],
  platforms: Sequence[str] = PLATFORMS,
) -> export.Exported:
  """`score(parameters, batch) -> float32 [R, 1]`, for any R, N and U.

  Args:
    model: the network.
    features: of its dataset.
    parameters: by flat name, as `flatten` gives those of params and stats.
    platforms: that the program is for, of those of jax.export.
  """
  step = make_score_step(model, features)

  def score(parameters, batch):
    tree = unflatten(parameters)
    # What is empty has no leaves to be named by.
    params = {'net': {}, **tree['params']}
    return step(params, tree.get('stats', {}), unflatten(batch))

  sizes = dict(zip('RNU', export.symbolic_shape('R, N, U'), strict=True))
  batch = {
    name: jax.ShapeDtypeStruct(
      [sizes.get(size, size) for size in spec['shape']], spec['dtype']
    )
    for name, spec in input_specs(features).items()
  }
  shapes = {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    for name, leaf in parameters.items()
  }
  program = jax.jit(score, keep_unused=True)
  with exact_products():
    return export.export(program, platforms=platforms)(shapes, batch)


def exact_products() -> contextlib.AbstractContextManager[None]:
  """Within, matrix products are of float32 on every platform.

  By default GPUs and TPUs round what goes into them, and scores would not be
  those of the golden rows.
  """
  return jax.default_matmul_precision('highest')


def golden_rows(dataset: Dataset, encoder: Encoder) -> Rows:
  """Rows of the test part, each with its history in it, and unknown ones.

  Two more ask of a user and of an item that nobody knows.
  """
  part = next(
    dataset.parts[name]
    for name in ('test', 'valid', 'train')
    if len(dataset.parts[name])
  )
  chosen = np.linspace(0, len(part) - 1, NUM_GOLDEN).astype(int)
  events = part.event[np.unique(chosen)]
  user, item = dataset.user[events], dataset.item[events]
  timestamp = dataset.timestamp[events]
  # An item that was taken, and the one of the row before.
  asked = Asked(user, item[:, None], timestamp, {})
  history, time = encoder.events(asked, whole=True)
  ends = np.cumsum(encoder.history_lengths(asked))[:-1]
  users, items = raw_ids(dataset, 'user'), raw_ids(dataset, 'item')
  names = lambda numbers: items.gather(numbers).to_list()
  context = {}
  for name in encoder.categories:
    ids = dataset.context_ids[name][events]
    value_of = dataset.values_of(name, ids)
    context[name] = [value_of.get(i) for i in ids.tolist()]
  own = Rows(
    users.gather(user).to_list(),
    names(item),
    timestamp.tolist(),
    context,
    [names(part) for part in np.split(history, ends)],
    [part.tolist() for part in np.split(time, ends)],
    {},
  )
  repeat = lambda values: [*values, *values, values[-1], values[-1]]
  return Rows(
    [*own.user, *own.user, _unknown(encoder.users), own.user[-1]],
    [
      *own.item,
      *own.item[-1:],
      *own.item[:-1],
      own.item[-1],
      _unknown(encoder.items),
    ],
    repeat(own.timestamp),
    {name: repeat(values) for name, values in own.context.items()},
    repeat(own.history),
    repeat(own.history_timestamp),
    {},
  )


def _unknown(ids: RawIds) -> str:
  """A raw id that nobody has."""
  name = 'unknown'
  while ids.find([name])[0] >= 0:
    name += '?'
  return name


def encode_rows(encoder: Encoder, rows: Rows) -> dict[str, np.ndarray]:
  """The batch of rows, of just as many requests."""
  return flat_batch(encoder.batch(ask_rows(encoder, rows), len(rows)))


def _write_golden(
  folder: Path, rows: Rows, batch: Mapping[str, np.ndarray], logit: np.ndarray
) -> None:
  assert rows.history is not None
  assert rows.history_timestamp is not None
  with (folder / GOLDEN_ROWS).open('w', encoding='utf-8') as file:
    for row in range(len(rows)):
      values = {
        'user': rows.user[row],
        'item': rows.item[row],
        'timestamp': rows.timestamp[row],
        'context': {name: c[row] for name, c in rows.context.items()},
        'history': rows.history[row],
        'history_timestamp': rows.history_timestamp[row],
        'logit': float(logit[row, 0]),
      }
      file.write(json.dumps(values) + '\n')
  arrays: dict[str, Any] = {**batch, 'logit': logit}
  np.savez(folder / GOLDEN_BATCH, **arrays)


def _write_tables(folder: Path, dataset: Dataset) -> None:
  """Vocabularies, and which ids each raw user and item has."""
  (folder / 'vocabularies').mkdir()
  for feature in dataset.features:
    name = f'vocabularies/{feature.name}.csv'
    shutil.copyfile(dataset.path / name, folder / name)
  users = raw_ids(dataset, 'user').alias('user')
  pl.DataFrame(
    {'user': users, 'id': np.asarray(dataset.user_ids)}
  ).rechunk().write_parquet(folder / 'users.parquet')
  items: dict[str, Any] = {'item': raw_ids(dataset, 'item')}
  for name, ids in dataset.item_ids.items():
    items[f'id.{name}'] = np.asarray(ids)
  pl.DataFrame(items).rechunk().write_parquet(folder / 'items.parquet')


def hash_of_tables(folder: Path) -> str:
  """sha256 of what turns raw ids into ids; the parameters know it.

  So vocabularies of another model show, whatever the manifest says.
  """
  files = sorted((folder / 'vocabularies').iterdir())
  files += [folder / name for name in _TABLES]
  return hash_values({file.name: hash_file(file) for file in files})


def _facts(run: Run, program: export.Exported) -> dict[str, Any]:
  """The content of `export.json`."""
  dataset, settings = run.dataset, run.settings
  config = dataset.config
  return {
    'format_version': FORMAT_VERSION,
    'library': f'eain-jax {eain_jax.__version__}',
    'jax': jax.__version__,
    'model': settings['model'],
    'model_config': settings['model_config'],
    'train_config': settings['train_config'],
    'dataset': {
      'fingerprint': dataset.fingerprint,
      'task': dataset.task,
      'split': dataset.manifest['split'],
      'columns': list(config.columns),
      'context': list(config.context),
      'history_length': config.history_length,
      'last_timestamp': dataset.manifest['last_timestamp'],
    },
    'features': [dataclasses.asdict(feature) for feature in dataset.features],
    'inputs': input_specs(dataset.features, time_features(dataset)),
    'output': 'float32 [R, 1], logits',
    'tolerance': _TOLERANCES[run.model.compute_dtype],
    'platforms': list(program.platforms),
    'calling_convention': program.calling_convention_version,
  }


def export_run(
  run: Run,
  output_dir: Path,
  platforms: Sequence[str] = PLATFORMS,
  check: Callable[[Path], object] = lambda folder: None,
) -> None:
  """Writes a run at its best checkpoint into a new folder, whole or not at all.

  Args:
    run: open.
    output_dir: a folder that is not there, or is empty.
    platforms: that the program is for: cpu, cuda, tpu, rocm.
    check: is called with the folder before it takes its place.

  Raises:
    InputError: the folder holds something, or cannot be written.
  """
  leaves = flatten({'params': run.params, 'stats': run.stats})
  parameters = {name: np.asarray(leaf) for name, leaf in leaves.items()}
  dataset, encoder = run.dataset, Encoder(run.dataset)
  with folder_written_whole(output_dir) as folder:
    program = make_program(run.model, dataset.features, parameters, platforms)
    rows = golden_rows(dataset, encoder)
    batch = encode_rows(encoder, rows)
    # By the model as it is here: the program is held against it.
    with exact_products():
      logit = run.score_step()(run.params, run.stats, unflatten(batch))
    facts = _facts(run, program)
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + '\n')
    (folder / PROGRAM).write_bytes(program.mlir_module_serialized)
    _write_tables(folder, dataset)
    data = save(parameters, {TABLES_HASH: hash_of_tables(folder)})
    (folder / PARAMETERS).write_bytes(data)
    _write_golden(folder, rows, batch, np.asarray(logit))
    shutil.copyfile(export_loader.__file__, folder / LOADER)
    (folder / README).write_text(_readme(facts, len(rows)))
    names = sorted(
      str(file.relative_to(folder))
      for file in folder.rglob('*')
      if file.is_file()
    )
    write_manifest(folder, names, format_version=FORMAT_VERSION)
    check(folder)


def _readme(facts: Mapping[str, Any], num_rows: int) -> str:
  """What the folder is, for who finds it."""
  template = Path(__file__).with_name('export_readme.md').read_text()
  return template.format(
    model=facts['model'].upper(),
    library=facts['library'],
    fingerprint=facts['dataset']['fingerprint'],
    platforms=', '.join(facts['platforms']),
    num_rows=num_rows,
    jax=facts['jax'],
    calling_convention=facts['calling_convention'],
    format_version=facts['format_version'],
  )
