"""A dataset's files on this disk, as they came the first time.

These files come without checksums. So the sha256 of what came first is kept, in
`download.json`: what lies here is compared with it, and what comes later too. A
file that changed, here or there, is named and not replaced unawares.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from eain_jax.artifacts import check_files, take_place, write_json
from eain_jax.config import DownloadConfig
from eain_jax.data import transfer
from eain_jax.data.catalogue import RemoteFile
from eain_jax.data.lines import check_file, hash_file
from eain_jax.data.transfer import Answer, Show
from eain_jax.errors import InputError
from eain_jax.locking import locked_folder

RECORD = 'download.json'


@dataclasses.dataclass(frozen=True)
class Kept:
  """A file as it was first, an entry of `download.json`."""

  url: str
  bytes: int
  sha256: str
  etag: str
  last_modified: str

  @property
  def answer(self) -> Answer:
    """What the server said of it then."""
    return Answer(self.bytes, self.etag, self.last_modified)


def _read_record(folder: Path) -> dict[str, Kept]:
  """What was fetched, by name.

  Raises:
    InputError: the record is damaged.
  """
  path = folder / RECORD
  try:
    files: Any = json.loads(path.read_bytes())['files']
    kept = {name: Kept(**values) for name, values in files.items()}
    if not all(
      type(value) is kind
      for entry in kept.values()
      for value, kind in zip(
        dataclasses.astuple(entry), (str, int, str, str, str), strict=True
      )
    ):
      raise ValueError('a value of another type')
  except FileNotFoundError:
    return {}
  except OSError as error:
    raise InputError(f'{path} cannot be read: {error.strerror}') from error
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise InputError(
      f'{path} is damaged: remove it, and the files that are here are checked '
      'and taken as they are'
    ) from error
  return kept


def _keep(file: RemoteFile, path: Path, answer: Answer) -> Kept:
  return Kept(
    file.url,
    path.stat().st_size,
    hash_file(path),
    answer.etag,
    answer.last_modified,
  )


def _ask(file: RemoteFile, config: DownloadConfig, show: Show) -> Answer:
  """What the server says now: nothing where it cannot be asked."""
  try:
    return transfer.ask(file, config.timeout)
  except InputError as error:
    show.note(f'{file.name} is not compared with the server: {error}')
    return Answer(None)


def _difference(now: Answer, kept: Kept, file: RemoteFile) -> str:
  """How the server's file differs from what it was first, or ''."""
  if file.url != kept.url:
    # Tags and dates are each server's own.
    return Answer(now.num_bytes).difference(kept.answer)
  return now.difference(kept.answer)


def _adopt(
  file: RemoteFile, path: Path, config: DownloadConfig, show: Show
) -> Kept:
  """Takes a file that the user has put there.

  Raises:
    InputError: it is not the server's, or not whole.
  """
  check_file(path)
  answer = _ask(file, config, show)
  if difference := answer.difference(Answer(path.stat().st_size)):
    raise InputError(
      f'{path} was not fetched by this command, and is not what the server '
      f'has ({difference}): move it away'
    )
  if path.suffix == '.gz':
    transfer.check_whole(path)
  show.note(f'{file.name} was here already, and is taken as it is')
  return _keep(file, path, answer)


def _fetch(
  file: RemoteFile,
  path: Path,
  kept: Kept | None,
  config: DownloadConfig,
  show: Show,
) -> Kept:
  """Fetches a file, and lets it take its place once it is checked.

  Raises:
    InputError: it cannot be had, is damaged, or is not what it was first.
  """
  part = path.with_name(f'{path.name}.part')
  answer = transfer.fetch(file, part, config, show)
  if path.suffix == '.gz':
    show.note(f'{file.name} has come, and is checked')
    try:
      transfer.check_whole(part)
    except InputError as error:
      transfer.discard(part)
      raise InputError(
        f'{error}, and was removed: the same command fetches it anew; where '
        'that ends so again, it is damaged on the server'
      ) from error
  new = _keep(file, part, answer)
  if kept and new.sha256 != kept.sha256 and not config.refresh:
    raise InputError(
      f'{file.url} is not what it was when it was first fetched: sha256 '
      f'{new.sha256}, it was {kept.sha256}; --refresh takes it as it is now'
    )
  take_place(part, path)
  transfer.discard(part)
  return new


def _provide(
  file: RemoteFile,
  path: Path,
  kept: Kept | None,
  config: DownloadConfig,
  show: Show,
) -> Kept:
  """Sees to it that a file is here, and is what it was first."""
  if not path.exists():
    return _fetch(file, path, kept, config, show)
  if kept is None:
    return _adopt(file, path, config, show)
  if config.refresh:
    if _difference(transfer.ask(file, config.timeout), kept, file):
      return _fetch(file, path, kept, config, show)
    show.note(f'{file.name}: the server has nothing newer')
  check_files(
    path.parent,
    {'files': {path.name: dataclasses.asdict(kept)}},
    remedy='remove it, and the same command fetches it anew',
  )
  show.note(f'{file.name} is here, {decimal(kept.bytes)}, unchanged')
  if not config.refresh:
    now = _ask(file, config, show)
    if difference := _difference(now, kept, file):
      show.note(
        f'{file.name} changed on the server ({difference}): the file that is '
        'here stays; --refresh takes the new one'
      )
  return kept


def download(
  files: Sequence[RemoteFile],
  folder: Path,
  config: DownloadConfig,
  show: Show,
) -> Mapping[str, Kept]:
  """Sees to it that files are in a folder, whole and as they first came.

  Args:
    files: of `catalogue.dataset_files`.
    folder: made where it is not there, and locked meanwhile.
    config: how they are fetched.
    show: told of bytes, and of what is odd.

  Returns:
    What is known of each file, by name, as it stands in `download.json`.

  Raises:
    InputError: one cannot be had or written, is no data, or has changed. What
      has come of it stays in NAME.part, and the next call goes on.
  """
  with locked_folder(folder, '--output_dir'):
    record = _read_record(folder)
    for file in files:
      kept = record.get(file.name)
      now = _provide(file, folder / file.name, kept, config, show)
      if now != kept:
        record[file.name] = now
        entries = {k: dataclasses.asdict(v) for k, v in record.items()}
        write_json(folder / RECORD, {'files': entries})
  return {file.name: record[file.name] for file in files}
