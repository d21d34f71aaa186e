"""Rows that wait on the disk come back as they were, whatever the pieces."""

import errno

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eain_jax.data import columns, spool
from eain_jax.data.events import Codes
from eain_jax.data.spool import NO_TIME, RowBuffer, Spool, _GrowingCodes

ROWS = st.lists(
  st.tuples(
    st.sampled_from(['u', 'v', 'w', 'ü', 'x y']),
    st.sampled_from([*'ABCDEFGH']),
    st.integers(-3, 3),
    st.floats(-4, 4, width=32),
    st.sampled_from(['tv', 'pc', None]),
  ),
  min_size=1,
  max_size=60,
)


def raw_rows(raw):
  """The rows of RawEvents, refused ones too, as a reader would list them."""
  text = lambda column: [
    None if code < 0 else column.values[int(code)] for code in column.codes
  ]
  return [
    *zip(
      text(raw.user),
      text(raw.item),
      raw.timestamp.tolist(),
      raw.rating.tolist(),
      text(raw.context['a/b']),
      strict=True,
    )
  ]


@settings(deadline=None)
@given(ROWS, st.integers(1, 9), st.integers(0, 4), st.integers(0, 5))
def test_rows_come_back(tmp_path_factory, rows, buffered, looked_up, merged):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(spool, 'BUFFERED_ROWS', buffered)
    patch.setattr(spool, 'MAX_LOOKED_UP', looked_up)
    patch.setattr(spool, 'MERGED_AT_ONCE', 4 * merged)
    patch.setattr(spool, 'SAMPLED', 4)
    patch.setattr(columns, 'BLOCK_ROWS', 7)
    kept = Spool(tmp_path_factory.mktemp('spool'))
    codes = {'user': Codes(), 'item': Codes(), 'a/b': Codes()}
    buffer = RowBuffer(
      kept,
      {
        'user': codes['user'],
        'item': codes['item'],
        'timestamp': None,
        'rating': None,
        'a/b': codes['a/b'],
      },
    )
    for user, item, time, rating, device in rows:
      code = -1 if device is None else codes['a/b'](device)
      values = codes['user'](user), codes['item'](item), time, rating, code
      for column, value in zip(buffer.columns.values(), values, strict=True):
        column.append(value)
      buffer.make_room()
    buffer.flush()
    unit, odd, _ = kept.end_file()
    raw = buffer.finish()
  assert (unit, odd.tolist(), raw.refused.tolist()) == ('seconds', [], [])
  assert raw_rows(raw) == rows
  assert buffer.filled == {'user', 'item'} | (
    {'a/b'} if any(row[4] for row in rows) else set()
  )
  for column in (raw.user, raw.item, raw.context['a/b']):
    assert column.values.n_unique() == len(column.values)


@settings(deadline=None)
@given(st.data(), st.integers(1, 4))
def test_pieces_of_numbers_and_of_text_are_merged(
  tmp_path_factory, data, merged
):
  numbers = st.lists(st.integers(-(10**12), 10**12), unique=True, max_size=9)
  texts = st.lists(st.text(max_size=3), unique=True, max_size=9)
  kinds = data.draw(st.sampled_from([[numbers], [texts], [numbers, texts]]))
  pieces = data.draw(st.lists(st.one_of(*kinds), min_size=1, max_size=9))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(spool, 'MERGED_AT_ONCE', 2 * merged)
    patch.setattr(spool, 'SAMPLED', 2)
    growing = _GrowingCodes(tmp_path_factory.mktemp('pieces'), 'a')
    expected = []
    for piece in pieces:
      for _ in range(data.draw(st.integers(1, 2))):
        codes = data.draw(st.lists(st.integers(-1, len(piece) - 1), max_size=5))
        growing.append(np.array(codes, np.int32))
        expected += [None if c < 0 else str(piece[c]) for c in codes]
      is_text = kinds == [texts] or (piece and isinstance(piece[0], str))
      dtype = pl.String if is_text else pl.Int64
      growing.end_piece(pl.Series(piece, dtype=dtype))
    column = growing.finish()
  assert [
    None if code < 0 else column.values[int(code)] for code in column.codes
  ] == expected
  assert column.values.to_list() == (
    list(dict.fromkeys(column.values.to_list()))
  )
  given_values = {str(value) for piece in pieces for value in piece}
  assert set(column.values.to_list()) == given_values


def test_each_file_has_its_unit_of_time(tmp_path, monkeypatch):
  monkeypatch.setattr(columns, 'BLOCK_ROWS', 2)
  kept = Spool(tmp_path)

  def add(times):
    codes = np.zeros(len(times), np.int32)
    kept.append(
      {'user': codes, 'item': codes, 'timestamp': np.array(times, np.int64)}
    )

  seconds, milliseconds = 1_500_000_000, 1_500_000_000_999
  add([seconds] * 3)
  unit, rows, times = kept.end_file()
  assert (unit, rows.tolist(), times.tolist()) == ('seconds', [], [])
  # A file of no row changes nothing.
  assert kept.end_file()[1].tolist() == []
  add([milliseconds, seconds])
  add([milliseconds, 7, NO_TIME, milliseconds])
  unit, rows, times = kept.end_file()
  assert (unit, times.tolist()) == ('milliseconds', [seconds, 7])
  assert rows.tolist() == [4, 6]
  kept.refuse(rows)
  for name in ('user', 'item'):
    kept.end_piece(name, pl.Series(['one']))
  raw = kept.finish()
  assert raw.timestamp[[0, 1, 2, 3, 5, 8]].tolist() == [seconds] * 6
  assert raw.refused.tolist() == [4, 6]


def test_a_full_disk_has_its_number(small_disk):
  growing = _GrowingCodes(small_disk('100k'), 'a')

  def fill():
    for piece in range(20):
      growing.append(np.arange(1_000, dtype=np.int32))
      names = [f'{piece} of a long name {n}' for n in range(1_000)]
      growing.end_piece(pl.Series(names))

  with pytest.raises(OSError, match='No space left on device') as caught:
    fill()
  assert caught.value.errno == errno.ENOSPC
