"""Datasets that were damaged by chance, and such as were made to do harm."""

import io
import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest

from eain_jax import artifacts
from eain_jax.config import PrepareConfig
from eain_jax.data.dataset import open_dataset
from eain_jax.data.prepare import prepare
from eain_jax.errors import InputError

BOTH = ('full', 'quick')


def rows(labelled):
  rng = np.random.default_rng(0)
  lines = ['u,i,t,d' + ',c' * labelled]
  for user in range(6):
    for time, item in enumerate(rng.permutation(9)[:6]):
      end = f',{int(item % 2)}' * labelled
      lines.append(f'u{user},i{item},{time},d{item % 2}{end}')
  return '\n'.join(lines) + '\n'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Folders of a small dataset of each task that has columns of its own."""
  folder = tmp_path_factory.mktemp('made')
  columns = ('user=u', 'item=i', 'timestamp=t', 'device=d')
  for name, is_logged in (('next_item', False), ('logged', True)):
    (folder / f'{name}.csv').write_text(rows(is_logged))
    config = PrepareConfig(
      events=str(folder / f'{name}.csv'),
      columns=columns + ('label=c',) * is_logged,
      eval_negatives=2,
      negatives=1,
      skip_above=not is_logged,
    )
    prepare(config, folder / name)
  prepare(
    PrepareConfig(synthetic=True, num_events=1000, eval_negatives=2),
    folder / 'world',
  )
  return folder


@pytest.fixture
def copy(made, tmp_path):
  """copy(name): a dataset of `made` that may be damaged."""

  def make(name='next_item'):
    shutil.copytree(made / name, tmp_path / name)
    return tmp_path / name

  return make


def refused(folder, verify, *, by=None):
  """The one sentence by which a dataset is refused; it names a file."""
  with pytest.raises(InputError) as caught:
    open_dataset(folder, verify=verify)
  sentence = str(caught.value)
  assert len(sentence.splitlines()) == 1
  assert sentence.isprintable()
  assert str(by or folder) in sentence
  return sentence


def files_of(folder):
  return sorted(path for path in folder.rglob('*') if path.is_file())


@pytest.mark.parametrize('name', ['next_item', 'logged', 'world'])
def test_as_it_was_written_it_opens(copy, name):
  folder = copy(name)
  for verify in BOTH:
    assert open_dataset(folder, verify=verify).num_users > 3


def test_a_flipped_bit_anywhere_is_named(copy):
  folder = copy()
  rng = np.random.default_rng(0)
  num_flips = 0
  for file in files_of(folder):
    good = file.read_bytes()
    # Both ends, the header's, and some between.
    places = {0, 10, 127, 128, len(good) - 1, *rng.integers(0, 1 << 30, 4)}
    for place in sorted({int(place) % len(good) for place in places if good}):
      bad = bytearray(good)
      bad[place] ^= 1 << int(rng.integers(8))
      file.write_bytes(bytes(bad))
      refused(folder, 'full', by=file)
      num_flips += 1
      if file.name == 'manifest.json':
        refused(folder, 'quick', by=file)
    file.write_bytes(good)
  assert num_flips > 150
  open_dataset(folder)


@pytest.mark.parametrize('verify', BOTH)
def test_a_file_that_is_cut_gone_or_none_is_named(copy, verify):
  folder = copy()
  for file in files_of(folder):
    good = file.read_bytes()
    # The last byte of the manifest is a new line, which says nothing.
    for size in {0, len(good) // 2, max(0, len(good) - 2)} if good else ():
      file.write_bytes(good[:size])
      refused(folder, verify, by=file)
    file.write_bytes(good + b'\0')
    refused(folder, verify, by=file)
    file.unlink()
    missing = file if file.name != 'manifest.json' else folder
    refused(folder, verify, by=missing)
    file.mkdir()
    refused(folder, verify, by=missing)
    file.rmdir()
    os.mkfifo(file)
    refused(folder, verify, by=missing)
    file.unlink()
    file.symlink_to('/dev/zero')
    refused(folder, verify, by=missing.name)
    file.unlink()
    file.write_bytes(good)
  open_dataset(folder)


def sign(folder, change=lambda manifest: None):
  """Makes a dataset state its own hashes, after it was tampered with."""
  file = folder / 'manifest.json'
  manifest = json.loads(file.read_text())
  manifest.pop('fingerprint', None)
  for name, entry in manifest['files'].items():
    entry['bytes'] = (folder / name).stat().st_size
    if entry['bytes'] < 1 << 20:
      entry['sha256'] = artifacts.hash_file(folder / name)
  change(manifest)
  manifest['fingerprint'] = artifacts.hash_values(manifest)
  file.write_text(json.dumps(manifest))


BAD_VALUES = [
  # dataset, column, row, value, whether a quick look sees it
  ('next_item', 'users.id', 2, -1, True),
  ('next_item', 'users.id', 2, 8, True),
  ('next_item', 'users.start', 0, 1, True),
  ('next_item', 'users.start', 3, 5, True),
  ('next_item', 'users.start', 6, 35, True),
  ('next_item', 'history.start', 2, 99, True),
  ('next_item', 'items.train_count', 0, -1, True),
  ('next_item', 'item_ids.item', 8, 11, True),
  ('next_item', 'events.user', 7, 6, False),
  ('next_item', 'events.user', 7, -1, False),
  ('next_item', 'events.user', 7, 0, False),
  ('next_item', 'events.item', 35, 9, False),
  ('next_item', 'events.item', 35, -(2**31), False),
  ('next_item', 'context.device', 3, 4, False),
  ('next_item', 'train.event', 1, 36, False),
  ('next_item', 'train.request', 4, 3, False),
  ('next_item', 'train.request', 0, 1, False),
  ('next_item', 'train.label', 0, 0, False),
  ('next_item', 'train.kept_negatives', 0, 2, False),
  ('next_item', 'test.candidates', 5, 9, False),
  ('next_item', 'test.candidates', 5, -1, False),
  ('world', 'item_ids.category_path', 3, -2, True),
  ('world', 'valid.truth', 3, np.nan, False),
  ('world', 'valid.truth', 3, np.inf, False),
  ('logged', 'history.start', 1, 7, True),
  ('logged', 'history.event', 0, 36, False),
  ('logged', 'history.event', 1, 35, False),
  ('logged', 'train.label', 0, 2, False),
  ('logged', 'train.history_end', 2, 9, False),
  ('logged', 'train.history_end', 2, -1, False),
]


@pytest.mark.parametrize(
  ('name', 'column', 'row', 'value', 'quick'), BAD_VALUES
)
def test_a_value_outside_of_its_table_is_named(
  copy, name, column, row, value, quick
):
  folder = copy(name)
  file = folder / 'columns' / f'{column}.npy'
  array = np.load(file)
  array[row] = value
  np.save(file, array)
  sign(folder)
  sentence = refused(folder, 'full', by=file)
  # A history that ends elsewhere shows where the next one begins.
  assert f'row {row}' in sentence or f'row {row + 1}' in sentence
  if quick:
    refused(folder, 'quick', by=file)
  else:
    open_dataset(folder, verify='quick')


class Canary:
  """Unpickled, it makes a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def npy(version, header, data=b''):
  size = 2 if version == 1 else 4
  text = header if isinstance(header, bytes) else repr(header).encode()
  magic = b'\x93NUMPY' + bytes([version, 0])
  return magic + len(text).to_bytes(size, 'little') + text + data


def saved(array, **settings):
  out = io.BytesIO()
  np.save(out, array, **settings)
  return out.getvalue()


def zipped():
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive:
    archive.writestr('events.item.npy', saved(np.zeros(36, np.int32)))
  return out.getvalue()


def header(descr='<i4', shape=(36,), fortran_order=False):
  return {'descr': descr, 'fortran_order': fortran_order, 'shape': shape}


ZEROS = bytes(144)
HOSTILE_COLUMNS = {
  'text': b'items' * 100,
  'empty': b'',
  'zip': zipped(),
  'more rows': npy(1, header(shape=(10**9,)), ZEROS),
  'fewer rows': npy(1, header(shape=(35,)), ZEROS),
  'more than memory': npy(1, header(shape=(2**62,)), ZEROS),
  'negative': npy(1, header(shape=(-36,)), ZEROS),
  'no shape': npy(1, header(shape=()), ZEROS),
  'two axes': npy(1, header(shape=(6, 6)), ZEROS),
  'by columns': npy(1, header(shape=(36,), fortran_order=True), ZEROS),
  'floats': npy(1, header('<f4'), ZEROS),
  'other endian': npy(1, header('>i4'), ZEROS),
  'structure': npy(1, header([('a', '<i4')]), ZEROS),
  'text type': npy(1, header('<U1'), ZEROS),
  'no type': npy(1, header('nonsense'), ZEROS),
  'program': npy(1, b'__import__("os").system("true")', ZEROS),
  'nested': npy(1, b'[' * 9_000, ZEROS),
  'long header': npy(1, b' ' * 60_000 + repr(header()).encode(), ZEROS),
  'version 2': npy(2, header(), ZEROS),
  'version 9': npy(9, header(), ZEROS),
}


@pytest.mark.parametrize('verify', BOTH)
@pytest.mark.parametrize('kind', HOSTILE_COLUMNS)
def test_what_is_no_column_is_named(copy, kind, verify):
  folder = copy()
  file = folder / 'columns' / 'events.item.npy'
  file.write_bytes(HOSTILE_COLUMNS[kind])
  sign(folder)
  refused(folder, verify, by=file)


@pytest.mark.parametrize('verify', BOTH)
@pytest.mark.parametrize('kind', ['array', 'bare', 'structure'])
def test_a_planted_pickle_never_runs(copy, tmp_path, kind, verify):
  folder, canary = copy(), tmp_path / 'canary'
  program = Canary(canary)
  objects = np.full(36, program, object)
  file = folder / 'columns' / 'events.item.npy'
  content = {
    'array': lambda: saved(objects, allow_pickle=True),
    'bare': lambda: pickle.dumps(program),
    'structure': lambda: saved(
      np.array([(1, program)] * 36, [('a', 'i4'), ('b', object)]),
      allow_pickle=True,
    ),
  }[kind]()
  file.write_bytes(content)
  sign(folder)
  refused(folder, verify, by=file)
  assert not canary.exists()
  # It would have run elsewhere.
  if kind == 'bare':
    pickle.loads(content)
    assert canary.exists()


def test_a_header_of_a_gigabyte_is_not_read(copy):
  folder = copy()
  file = folder / 'columns' / 'events.item.npy'
  with file.open('wb') as out:
    out.write(b'\x93NUMPY\x03\x00' + (1 << 30).to_bytes(4, 'little'))
    out.truncate(1 << 30)
  sign(folder)
  assert 'is of format (3, 0)' in refused(folder, 'quick', by=file)


def places_of(tree, path=()):
  """The way to every value of a manifest, of lists to their first."""
  if path:
    yield path
  if isinstance(tree, dict):
    for name in tree:
      if path[:1] != ('files',) or name == 'bytes' or not path[1:]:
        yield from places_of(tree[name], (*path, name))
  elif isinstance(tree, list) and tree:
    yield from places_of(tree[0], (*path, 0))


def test_a_manifest_of_any_other_types_is_one_sentence_or_means_nothing(copy):
  folder = copy()
  before = (folder / 'manifest.json').read_text()
  whole = json.loads(before)
  del whole['fingerprint']
  num_refused = 0
  nothing = {
    'sources', 'notes', 'config', 'version', 'seed', 'min_history', 'counts',
    'first_timestamp', 'last_timestamp', 'split',
  }  # fmt: skip
  for path in places_of(whole):
    if path[0] == 'files' and path[1:2] not in (
      (),
      ('columns/events.item.npy',),
    ):
      continue
    for value in (None, 'x', -1, [], {}, 10**30, 'remove'):
      manifest = json.loads(before)
      del manifest['fingerprint']
      owner = manifest
      for step in path[:-1]:
        owner = owner[step]
      if value == 'remove':
        del owner[path[-1]]
      elif owner[path[-1]] == value:
        continue
      else:
        owner[path[-1]] = value
      manifest['fingerprint'] = artifacts.hash_values(manifest)
      (folder / 'manifest.json').write_text(json.dumps(manifest))
      said = ''
      try:
        open_dataset(folder, verify='quick')
        # Counts that no model depends on, and settings that it may have.
        assert path[0] in nothing or value == 'remove', (path, value)
      except InputError as error:
        said = str(error)
      if said:
        num_refused += 1
        assert str(folder) in said
        assert said.isprintable()
  assert num_refused > 300


@pytest.mark.parametrize('where', ['top', 'config', 'features', 'column'])
def test_what_a_manifest_should_not_hold_is_refused(copy, where):
  folder = copy()

  def add(manifest):
    if where == 'column':
      entry = manifest['files']['columns/events.item.npy']
      manifest['files']['columns/other.npy'] = entry
      shutil.copy(
        folder / 'columns' / 'events.item.npy', folder / 'columns' / 'other.npy'
      )
      return
    owner = {'top': manifest, 'config': manifest['config']}.get(
      where, manifest['features'][0]
    )
    owner['surprise\x1b[2J'] = 1

  sign(folder, add)
  for verify in BOTH:
    refused(folder, verify)


def test_a_test_part_that_skip_above_has_thinned_is_refused(copy):
  """As versions before did, where labels are the log's own."""
  folder = copy('logged')

  def thin(manifest):
    manifest['counts']['test']['dropped_by_skip_above'] = 3

  sign(folder, thin)
  for verify in BOTH:
    with pytest.raises(InputError, match='taken 3 examples from test by Skip'):
      open_dataset(folder, verify=verify)
