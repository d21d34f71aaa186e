"""Lines of text files: numbering, gzip, and every way a file can be bad."""

import gzip
import hashlib
import os
import random
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eain_jax.data import lines as lines_module
from eain_jax.data.lines import (
  LineReader,
  ReadOptions,
  check_file,
  first_lines,
  hash_file,
)
from eain_jax.errors import InputError

STRICT = ReadOptions()
TRUNCATED = ReadOptions(allow_truncated=True)
# Files of a few bytes, many to a test.
fast = settings(
  deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read(path, options=STRICT):
  """All lines, with a check that they are numbered from 1 without a gap."""
  reader, found = LineReader(path, options), []
  for first, lines in reader.blocks():
    assert first == len(found) + 1
    found += lines
  assert reader.lines + reader.blank == len(found)
  assert reader.blank == found.count(b'')
  return found, reader


def refusal(path, options=STRICT):
  """The sentence that a file is refused with."""
  with pytest.raises(InputError) as caught:
    read(path, options)
  message = str(caught.value)
  assert '\n' not in message
  assert str(path) in message
  return message


@pytest.fixture
def small_blocks(monkeypatch):
  """Blocks of a few bytes, so that lines lie across many of them."""
  monkeypatch.setattr(lines_module, 'BLOCK_BYTES', 64)


def test_line_ends_blanks_and_byte_order_mark(tmp_path):
  path = tmp_path / 'a'
  path.write_bytes(b'\xef\xbb\xbfone\r\n\r\n \t\ntwo \n\nthree')
  lines, reader = read(path)
  assert lines == [b'one', b'', b'', b'two ', b'', b'three']
  assert (reader.lines, reader.blank) == (3, 3)


def test_a_line_keeps_its_own_bytes(tmp_path):
  # The second byte of U+01FB is one of the byte order mark's; a tab at
  # either end is an empty field.
  content = ['\u01fb', '\tu\t', 'a\u00ef', '\ufeff']
  path = tmp_path / 'a'
  path.write_text('x\n' + '\n'.join(content))
  assert read(path)[0] == [b'x', *(text.encode() for text in content)]


@fast
@given(
  st.lists(st.binary(max_size=90).filter(lambda b: b'\n' not in b), min_size=1)
)
def test_any_lines_plain_or_gzip_in_small_blocks(
  tmp_path, small_blocks, content
):
  # The head decides whether this is text; junk comes later.
  data = b'text' * 16 + b'\n' + b'\n'.join(content)
  *ended, last = [
    b'' if not line.strip() else line.rstrip(b'\r')
    for line in data.split(b'\n')
  ]
  plain, packed = tmp_path / 'plain', tmp_path / 'packed'
  plain.write_bytes(data)
  packed.write_bytes(gzip.compress(data))
  expected = ended + ([last] if data[-1:] != b'\n' else [])
  found, reader = read(plain)
  assert found == expected
  assert read(packed)[0] == expected
  assert reader.sha256 == hashlib.sha256(data).hexdigest() == hash_file(plain)
  assert reader.num_bytes == len(data)


def test_gzip_members_and_padding_are_one_file(tmp_path, small_blocks):
  path = tmp_path / 'a'
  members = [b'one\ntw', b'o\nthree\n' + b'x' * 200, b'\nfour']
  path.write_bytes(b''.join(map(gzip.compress, members)) + bytes(1_000))
  found, reader = read(path)
  assert found == [b'one', b'two', b'three', b'x' * 200, b'four']
  assert reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
  assert not reader.truncated


def numbered_gzip(num=400):
  rng = random.Random(0)
  return gzip.compress(
    b''.join(b'%d %x\n' % (i, rng.getrandbits(80)) for i in range(num))
  )


@pytest.mark.parametrize('share', [0.01, 0.3, 0.7, 0.99])
def test_truncated_gzip_says_its_line(tmp_path, small_blocks, share):
  data = numbered_gzip()
  path = tmp_path / 'a.gz'
  path.write_bytes(data[: int(len(data) * share)])
  # What zlib gets out of the bytes that are there.
  text = zlib.decompressobj(31).decompress(path.read_bytes())
  complete = text.split(b'\n')[:-1]
  message = refusal(path)
  assert f'it ends within line {len(complete) + 1};' in message
  assert '--allow_truncated' in message
  if complete:
    found, reader = read(path, TRUNCATED)
    assert found == complete
    assert reader.truncated
    assert reader.sha256 == hash_file(path)
  else:
    assert 'without one complete line' in refusal(path, TRUNCATED)


def test_no_cut_of_a_gzip_passes_as_whole(tmp_path):
  data = gzip.compress(b'one\ntwo\nthree\n' * 3)
  for cut in range(2, len(data)):
    path = tmp_path / str(cut)
    path.write_bytes(data[:cut])
    assert 'truncated gzip' in refusal(path)


def test_no_flipped_byte_of_a_gzip_passes(tmp_path):
  content = [b'%d' % (i * i) for i in range(60)]
  data = bytearray(gzip.compress(b'\n'.join(content)))
  num_refused = 0
  for place in range(len(data)):
    data[place] ^= 0x55
    path = tmp_path / str(place)
    path.write_bytes(data)
    data[place] ^= 0x55
    try:
      # The header's time, level and system mean nothing.
      assert read(path)[0] == content
      assert place < 10
    except InputError:
      num_refused += 1
  assert num_refused >= len(data) - 6


def test_damage_to_the_checksum_is_seen(tmp_path):
  data = bytearray(gzip.compress(b'one\ntwo\n', mtime=0))
  data[-8] ^= 1
  path = tmp_path / 'a'
  path.write_bytes(data)
  assert 'damaged gzip' in refusal(path)
  assert 'damaged gzip' in refusal(path, TRUNCATED)


@pytest.mark.parametrize(
  ('content', 'sentence'),
  [
    (b'', 'is empty'),
    (gzip.compress(b'', mtime=0), 'is empty'),
    (b'<!DOCTYPE html>\n<html><body>404', 'is an HTML or XML page'),
    (b'\n  <html lang="en">', 'is an HTML or XML page'),
    (b"<?xml version='1.0'?><Error>", 'is an HTML or XML page'),
    (gzip.compress(b'<html>', mtime=0), 'is an HTML or XML page'),
    (b'PK\x03\x04\x14\0\0\0\x08\0' + bytes(40), 'holds binary data'),
    (random.Random(0).randbytes(5_000), 'holds binary data'),
    ('{"a": 1}'.encode('utf-16'), 'holds binary data'),
    (b'\x1f\x8b\xff' + bytes(20), 'is a damaged gzip file'),
    (
      gzip.compress(b'a\n', mtime=0) + b'junk after it',
      'is a damaged gzip file',
    ),
  ],
)
def test_files_that_are_no_text(tmp_path, content, sentence):
  path = tmp_path / 'a'
  path.write_bytes(content)
  assert sentence in refusal(path)


def test_paths_that_are_no_file(tmp_path):
  for path, sentence in [
    (tmp_path, 'is a folder, a file was expected'),
    (tmp_path / 'missing', 'does not exist'),
    (tmp_path / ('x' * 5_000), 'cannot be read: File name too long'),
  ]:
    with pytest.raises(InputError, match=sentence):
      check_file(path)
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(InputError, match='is a pipe or a device'):
    check_file(tmp_path / 'pipe')


@pytest.mark.parametrize('place', [0, 1, 7])
@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_longest_line(tmp_path, monkeypatch, place, pack):
  monkeypatch.setattr(lines_module, 'MAX_LINE_BYTES', 1 << 20)
  monkeypatch.setattr(lines_module, 'BLOCK_BYTES', 1 << 18)
  content = [b'ab'] * 9
  path = tmp_path / 'a'
  content[place] = b'x' * (1 << 20)
  path.write_bytes(pack(b'\n'.join(content)))
  assert read(path)[0] == content
  content[place] += b'x'
  path.write_bytes(pack(b'\n'.join(content)))
  assert f', line {place + 1}: longer than 1 MiB' in refusal(path)


def test_a_line_over_16_mib_is_refused(tmp_path):
  path = tmp_path / 'bomb.gz'
  # 40 kB that would be 40 MB.
  path.write_bytes(gzip.compress(b'{}\n' + b' ' * (40 << 20)))
  assert 'line 2: longer than 16 MiB' in refusal(path)


def test_rejected_lines_keep_200_characters(tmp_path):
  path = tmp_path / 'a'
  path.write_text('x')
  reader = LineReader(path, ReadOptions())
  reader.reject(3, 'r' * 900, '\u00e9'.encode() * 300)
  reader.reject(4, 'no', 'y' * 300)
  reader.reject(5, 'not UTF-8', b'\xff')
  assert reader.rejected == [
    (3, 'r' * 200, '\u00e9' * 200),
    (4, 'no', 'y' * 200),
    (5, 'not UTF-8', '\ufffd'),
  ]


def test_a_flood_of_rejected_lines_stops_early(tmp_path, monkeypatch):
  monkeypatch.setattr(lines_module, 'MAX_REJECTED_KEPT', 5)
  path = tmp_path / 'a'
  path.write_text('x\n' * 10)

  def reject_all(max_rejected):
    reader = LineReader(path, ReadOptions(max_rejected=max_rejected))
    for first, lines in reader.blocks():
      for number in range(first, first + len(lines)):
        reader.reject(number, 'bad', '')
    return reader

  with pytest.raises(InputError) as caught:
    reject_all(0.1)
  assert '6 of the first 10 lines were rejected, the first in line 1: bad' in (
    str(caught.value)
  )
  assert len(reject_all(1.0).rejected) == 10


def test_first_lines(tmp_path):
  path = tmp_path / 'a'
  path.write_text('\n\na\n\nb\nc')
  assert first_lines(path, ReadOptions(), 2) == [(3, b'a'), (5, b'b')]
  assert len(first_lines(path, ReadOptions(), 9)) == 3
  path.write_text('\n \n')
  with pytest.raises(InputError, match='is empty: it holds no line'):
    first_lines(path, ReadOptions(), 1)
