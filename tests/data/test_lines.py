"""Lines of text files: numbering, gzip, and every way a file can be bad."""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import pickle
import random
import tarfile
import zipfile
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
    (random.Random(0).randbytes(5_000), 'holds binary data'),
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
  options = ReadOptions(max_inflation=2_000)
  assert 'line 2: longer than 16 MiB' in refusal(path, options)


@pytest.mark.parametrize('line', [b'', b'u,i,1\n', b'\n', b'x' * 99_999])
def test_what_inflates_too_far_is_refused(tmp_path, monkeypatch, line):
  """DEFLATE makes 1,032 bytes of one; no log comes near."""
  monkeypatch.setattr(lines_module, 'JUDGED_BYTES', 1 << 20)
  monkeypatch.setattr(lines_module, 'BLOCK_BYTES', 1 << 18)
  path = tmp_path / 'a.gz'
  # A part that is as it should be does not help what comes after it.
  head = b''.join(b'%d\n' % n for n in range(1_000))
  num = (4 << 20) // max(len(line), 1)
  data = head + (line or b' ') * num
  path.write_bytes(gzip.compress(data))
  ratio = len(data) / path.stat().st_size
  assert ratio > 200
  message = refusal(path)
  assert message.startswith(f'{path}: ')
  assert 'times as many' in message
  assert 'raise --max_inflation' in message
  # What it says works.
  found, _ = read(path, ReadOptions(max_inflation=1_100))
  assert len(found) == len(data.removesuffix(b'\n').split(b'\n'))


def test_inflation_is_judged_over_all_members(tmp_path, monkeypatch):
  monkeypatch.setattr(lines_module, 'JUDGED_BYTES', 1 << 16)
  path = tmp_path / 'a.gz'
  path.write_bytes(gzip.compress(b'a\n' * 5_000) * 9)
  assert 'times as many' in refusal(path, ReadOptions(max_inflation=100))
  assert len(read(path, ReadOptions(max_inflation=400))[0]) == 45_000


def test_what_comes_out_of_a_gzip_has_a_limit(tmp_path):
  path = tmp_path / 'a.gz'
  path.write_bytes(
    gzip.compress(random.Random(0).randbytes(9_000).hex().encode())
  )
  assert len(read(path, ReadOptions(max_inflated_gb=18e-6))[0]) == 1
  assert refusal(path, ReadOptions(max_inflated_gb=17e-6)) == (
    f'{path}: more than 1.7e-05 GB came out of it: split it, or raise '
    '--max_inflated_gb'
  )


def made_tar():
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode='w') as archive:
    archive.addfile(tarfile.TarInfo('reviews.json'), io.BytesIO(b''))
  return out.getvalue()


def made_zip():
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive:
    archive.writestr('reviews.json', '{}')
  return out.getvalue()


@pytest.mark.parametrize('pack', [bytes, gzip.compress])
@pytest.mark.parametrize(
  ('content', 'sentence'),
  [
    (
      bz2.compress(b'text'),
      'is compressed with bzip2, not lines of text: unpac',
    ),
    (
      lzma.compress(b'text'),
      'is compressed with xz, not lines of text: unpack',
    ),
    (b'\x28\xb5\x2f\xfd' + bytes(9), 'is compressed with zstd, not lines'),
    (
      made_zip(),
      'is a zip archive or a spreadsheet, not lines of text: unpack',
    ),
    (made_tar(), 'is a tar archive: unpack it with tar -xf'),
    (b'\x89PNG\r\n\x1a\n' + bytes(9), 'is a PNG image, not lines of text'),
    (b'%PDF-1.7\n', 'is a PDF document, not lines of text: name the data'),
    (b'PAR1' + bytes(9), 'is Parquet, not lines of text: only --events and'),
    (b'SQLite format 3\0', 'is an SQLite database, not lines of text: write'),
    (pickle.dumps([1], 2), 'is a Python pickle, which is never loaded, not'),
    (pickle.dumps({'a': 1}), 'is a Python pickle, which is never loaded, not'),
    ('{"a": 1}'.encode('utf-16'), 'is UTF-16 text: convert it with iconv'),
    ('{"a": 1}'.encode('utf-16-le'), 'is UTF-16 text: convert it with iconv'),
    ('u,i,t\n'.encode('utf-16-be'), 'is UTF-16 text: convert it with iconv'),
  ],
)
def test_files_of_other_kinds_are_named(tmp_path, content, sentence, pack):
  path = tmp_path / 'reviews.json'
  path.write_bytes(pack(content))
  assert f'{path} {sentence}' in refusal(path)


def test_gzip_within_gzip_is_named(tmp_path):
  path = tmp_path / 'a'
  path.write_bytes(gzip.compress(gzip.compress(b'text\n')))
  assert 'is gzip within gzip, not lines of text: unpack it once' in (
    refusal(path)
  )


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
