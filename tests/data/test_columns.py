"""Columns in pieces are the columns as numpy writes them whole."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from eain_jax.data import columns, examples
from eain_jax.errors import InputError


@pytest.mark.parametrize('dtype', [np.int8, np.int32, np.int64, np.float32])
@pytest.mark.parametrize('row_shape', [(), (1,), (99,)])
@pytest.mark.parametrize('pieces', [[0], [1], [3, 0, 8], [1000, 1]])
def test_pieces_give_the_bytes_of_the_whole(tmp_path, dtype, row_shape, pieces):
  rng = np.random.default_rng(0)
  whole = rng.integers(-100, 100, (sum(pieces), *row_shape)).astype(dtype)
  writer = columns.ColumnWriter(tmp_path / 'c.npy', dtype, row_shape)
  for rows in np.split(whole, np.cumsum(pieces)[:-1]):
    writer.append(rows)
  writer.close()
  expected = io.BytesIO()
  np.save(expected, whole)
  assert (tmp_path / 'c.npy').read_bytes() == expected.getvalue()
  mapped = columns.map_column(tmp_path / 'c.npy')
  np.testing.assert_array_equal(mapped, whole)
  assert mapped.dtype == dtype


def test_pieces_need_not_lie_in_one_piece_of_memory(tmp_path):
  whole = np.arange(24, dtype=np.int32).reshape(6, 4)
  writer = columns.ColumnWriter(tmp_path / 'c.npy', np.int32, (3,))
  writer.append(whole[::2, 1:])
  writer.close()
  np.testing.assert_array_equal(np.load(tmp_path / 'c.npy'), whole[::2, 1:])


@pytest.mark.parametrize(
  'rows', [np.zeros(3, np.int64), np.zeros((3, 2), np.int32)]
)
def test_a_piece_of_another_kind_is_refused(tmp_path, rows):
  writer = columns.ColumnWriter(tmp_path / 'c.npy', np.int32, ())
  with pytest.raises(ValueError, match='holds int32'):
    writer.append(rows)
  writer.close()


def resident_bytes():
  fields = Path('/proc/self/statm').read_text().split()
  return int(fields[1]) * 4096


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_what_was_read_of_a_column_can_be_let_go_of(tmp_path):
  size = 1 << 23
  np.save(tmp_path / 'c.npy', np.arange(size))
  column = columns.map_column(tmp_path / 'c.npy')
  before = resident_bytes()
  total = int(column.sum())
  assert resident_bytes() - before > 6 * size
  columns.release(column[5:])
  assert resident_bytes() - before < 2 * size
  assert int(column.sum()) == total == size * (size - 1) // 2


def test_letting_go_of_what_is_not_mapped_changes_nothing(tmp_path):
  np.save(tmp_path / 'c.npy', np.arange(5))
  writable = np.load(tmp_path / 'c.npy', mmap_mode='c')
  writable[2] = 7
  in_memory = np.arange(5)
  columns.release(writable, in_memory)
  assert writable.tolist() == [0, 1, 7, 3, 4]
  assert in_memory.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize('rows_at_once', [1, 3, 7, 100])
def test_offsets_of_users_whatever_the_block(monkeypatch, rows_at_once):
  monkeypatch.setattr(columns, 'BLOCK_ROWS', rows_at_once)
  user = np.int32([0, 0, 0, 0, 2, 2, 3])
  # Users 1 and 4 have no event.
  assert examples.user_offsets(user, 5).tolist() == [0, 4, 4, 6, 7, 7]


@pytest.mark.parametrize('lost', [1, 8, 500])
def test_what_a_disk_did_not_keep_is_noticed(tmp_path, lost):
  path = tmp_path / 'column.npy'
  writer = columns.ColumnWriter(path, np.dtype(np.int64), ())
  writer.append(np.full(1000, -1))
  writer._file.flush()
  with path.open('r+b') as file:
    file.seek(-lost, 2)
    file.write(bytes(lost))
  with pytest.raises(InputError, match='does not hold the 8000 bytes'):
    writer.close()
