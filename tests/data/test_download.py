"""Fetching from a server that cuts, lies, changes, and does not answer."""

import gzip
import hashlib
import http.client
import json
import random
import socket

import pytest

from eain_jax.config import DownloadConfig
from eain_jax.data import transfer
from eain_jax.data.catalogue import (
  DATASETS,
  RELEASES,
  RemoteFile,
  dataset_files,
)
from eain_jax.data.download import download
from eain_jax.errors import InputError
from eain_jax.locking import locked_folder
from tests.data.file_server import FileServer, answering, sending, serving

NAME = 'reviews.json.gz'


def packed(seed, num_bytes=300_000):
  """A gzip file that does not shrink, so its size is known."""
  return gzip.compress(random.Random(seed).randbytes(num_bytes), 0)


CONTENT, OTHER = packed(0), packed(1)


class Shown:
  """What a user was told."""

  def __init__(self):
    self.notes, self.steps = [], []

  def progress(self, name, done, total):
    self.steps.append((name, done, total))

  def note(self, text):
    self.notes.append(text)


@pytest.fixture
def server():
  with FileServer() as server:
    server.files[f'/{NAME}'] = CONTENT
    yield server


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
  """The seconds that were waited for, without waiting."""
  monkeypatch.setenv('no_proxy', '*')
  waited = []
  monkeypatch.setattr(transfer.time, 'sleep', waited.append)
  return waited


@pytest.fixture
def get(server, tmp_path):
  """get(**settings): fetches the file; what the user was told."""

  def get(url=server.url, folder=tmp_path / 'out', **settings):
    shown = Shown()
    config = DownloadConfig(**{'timeout': 1, 'attempts': 3} | settings)
    file = RemoteFile(NAME, f'{url}/{NAME}', 'https://owners.example/')
    get.record = download([file], folder, config, shown)
    return shown

  get.path = tmp_path / 'out' / NAME
  get.part = tmp_path / 'out' / f'{NAME}.part'
  return get


def assert_finished(get, content=CONTENT):
  """The file is there, whole, recorded, and nothing else is."""
  assert get.path.read_bytes() == content
  names = sorted(path.name for path in get.path.parent.iterdir())
  assert names == ['download.json', NAME]
  record = json.loads((get.path.parent / 'download.json').read_text())
  entry = record['files'][NAME]
  assert entry['bytes'] == len(content)
  assert entry['sha256'] == hashlib.sha256(content).hexdigest()


def refused(get, **settings):
  """The one sentence that it ends with."""
  with pytest.raises(InputError) as caught:
    get(**settings)
  text = str(caught.value)
  assert '\n' not in text
  return text


# The catalogue.


def test_the_addresses_are_those_that_are_published():
  def urls(*arguments):
    return [file.url for file in dataset_files(*arguments)]

  snap = 'https://snap.stanford.edu/data/amazon/productGraph/categoryFiles'
  lab = 'https://mcauleylab.ucsd.edu/public_datasets/data'
  assert urls('electronics_2014') == [
    f'{snap}/reviews_Electronics_5.json.gz',
    f'{snap}/meta_Electronics.json.gz',
  ]
  assert urls('books_2014', 'all') == [
    f'{snap}/reviews_Books.json.gz',
    f'{snap}/meta_Books.json.gz',
  ]
  assert urls('books_2014', 'ratings', False) == [f'{snap}/ratings_Books.csv']
  assert urls('video_games_2018') == [
    f'{lab}/amazon_v2/categoryFilesSmall/Video_Games_5.json.gz',
    f'{lab}/amazon_v2/metaFiles2/meta_Video_Games.json.gz',
  ]
  assert urls('amazon_fashion_2018', 'all', False) == [
    f'{lab}/amazon_v2/categoryFiles/AMAZON_FASHION.json.gz'
  ]
  assert urls('baby_products_2023') == [
    f'{lab}/amazon_2023/benchmark/5core/rating_only/Baby_Products.csv.gz',
    f'{lab}/amazon_2023/raw/meta_categories/meta_Baby_Products.jsonl.gz',
  ]
  assert urls('baby_products_2023', 'all', False) == [
    f'{lab}/amazon_2023/raw/review_categories/Baby_Products.jsonl.gz'
  ]


def test_the_catalogue_is_whole():
  assert {year: len(r.categories) for year, r in RELEASES.items()} == {
    '2014': 24,
    '2018': 29,
    '2023': 33,
  }
  assert len(DATASETS) == 86
  for name in DATASETS:
    parts = ('5core', 'all', 'ratings')
    files = [dataset_files(name, part)[0] for part in parts]
    files.append(dataset_files(name)[1])
    # They may all lie in one folder.
    assert len({file.name for file in files}) == 4
    assert all('/' not in file.name for file in files)


def test_a_mirror_takes_the_place_of_the_base():
  (file,) = dataset_files(
    'books_2018', metadata=False, mirror='http://m.example:81/x/'
  )
  assert file.url == 'http://m.example:81/x/categoryFilesSmall/Books_5.json.gz'


@pytest.mark.parametrize(
  'mirror',
  [
    'ftp://m.example/x',
    'file:///etc',
    '/a/folder',
    'https://',
    'https://user:secret@m.example',
    'https://m.example/?q=1',
    'https://m.example:port',
    'https://m.example/a b',
    'https://m.example/\u00e9',
    'https://m.example/\x1b[0m',
    'https://[m.example',
  ],
)
def test_a_mirror_that_is_no_address(mirror):
  with pytest.raises(InputError, match='is no address of a folder'):
    dataset_files('books_2018', mirror=mirror)


def test_an_unknown_dataset_names_its_neighbours():
  with pytest.raises(InputError, match='all_beauty_2018, luxury_beauty_2018'):
    dataset_files('beauty_2018')
  with pytest.raises(
    InputError, match=r'\(perhaps books_2014, books_2018, books_2023\)'
  ):
    dataset_files('Books')
  with pytest.raises(InputError, match=r'perhaps electronics_2014'):
    dataset_files('Electronic_2014')
  with pytest.raises(InputError, match='dataset=zzz is unknown: --list'):
    dataset_files('zzz')


# Fetching.


def test_a_file_comes_whole(server, get):
  shown = get()
  assert_finished(get)
  assert shown.steps[0] == (NAME, 0, len(CONTENT))
  assert shown.steps[-1] == (NAME, len(CONTENT), len(CONTENT))
  entry = get.record[NAME]
  assert entry.etag == '"v1"'
  assert entry.last_modified == 'Fri, 02 Jan 2015 10:00:00 GMT'


def test_a_cut_goes_on_where_it_was_cut(server, get, pauses):
  server.script = [serving(cut=100_000), serving(cut=50_000)]
  shown = get()
  assert_finished(get)
  assert server.gets == [
    (f'/{NAME}', None),
    (f'/{NAME}', 'bytes=100000-'),
    (f'/{NAME}', 'bytes=150000-'),
  ]
  assert [r.if_range for r in server.requests] == [None, '"v1"', '"v1"']
  assert pauses == [1, 2]
  assert 'the connection was cut at 100,000 of' in shown.notes[0]


def test_what_came_is_kept_for_the_next_command(server, get):
  server.script = [serving(cut=100_000), *[sending(b'')] * 2]
  text = refused(get)
  assert 'cut, 3 times in a row: 100.0 kB are kept, and the same' in text
  assert get.part.read_bytes() == CONTENT[:100_000]
  server.requests.clear()
  get()
  assert_finished(get)
  assert server.gets == [(f'/{NAME}', 'bytes=100000-')]


def test_a_half_of_which_all_had_come_is_not_fetched_again(server, get):
  server.script = [serving(cut=100_000)]
  refused(get, attempts=1)
  get.part.write_bytes(CONTENT)
  server.requests.clear()
  get()
  assert_finished(get)
  assert server.gets == []


def test_going_on_by_date_where_the_tag_is_weak(server, get):
  server.etag = 'W/"v1"'
  server.script = [serving(cut=100_000)]
  get()
  assert_finished(get)
  assert server.requests[1].if_range == server.last_modified


def test_without_tag_and_date_it_begins_anew(server, get):
  server.etag = server.last_modified = ''
  server.script = [serving(cut=100_000)]
  shown = get()
  assert_finished(get)
  assert server.gets == [(f'/{NAME}', None)] * 2
  assert 'begins anew: the server cannot go on' in shown.notes[-2]


def test_a_server_without_ranges_begins_anew(server, get):
  server.script = [serving(cut=100_000), serving(ranges=False)]
  shown = get()
  assert_finished(get)
  assert server.gets[1] == (f'/{NAME}', 'bytes=100000-')
  assert 'begins anew: the server cannot go on' in shown.notes[1]


def test_what_changed_meanwhile_begins_anew(server, get):
  server.script = [serving(cut=100_000)]
  refused(get, attempts=1)
  server.files[f'/{NAME}'], server.etag = OTHER, '"v2"'
  shown = get()
  assert_finished(get, OTHER)
  assert 'begins anew: its ETag was "v1", and is "v2"' in shown.notes[0]


def test_what_became_shorter_meanwhile_begins_anew(server, get):
  server.script = [serving(cut=200_000)]
  refused(get, attempts=1)
  short = packed(2, 1000)
  server.files[f'/{NAME}'] = short
  get()
  assert_finished(get, short)


@pytest.mark.parametrize(
  'headers',
  [
    {'Content_Range': 'bytes 5-300022/300023'},
    {'Content_Range': 'nonsense'},
    {'Content_Range': 'bytes 100000-300000/300001'},
    {},
  ],
)
def test_another_piece_than_was_asked_for_is_not_taken(server, get, headers):
  server.script = [serving(cut=100_000), answering(206, b'x' * 9, **headers)]
  get()
  assert_finished(get)
  # The half is not trusted either.
  assert server.gets[2] == (f'/{NAME}', None)


def test_a_piece_of_another_version_is_not_taken(server, get):
  def ignore_if_range(handler):
    server.etag = '"v2"'
    del handler.headers['If-Range']
    handler.serve()

  server.script = [serving(cut=100_000), ignore_if_range]
  get()
  assert_finished(get)
  assert server.gets[2] == (f'/{NAME}', None)


@pytest.mark.parametrize(
  'text', ['{', '[]', '{"url": 1}', '{"url": "elsewhere", "num_bytes": 1}']
)
def test_a_half_without_its_record_begins_anew(server, get, text):
  server.script = [serving(cut=100_000)]
  refused(get, attempts=1)
  get.part.with_name(f'{NAME}.part.json').write_text(text)
  shown = get()
  assert_finished(get)
  assert 'nothing vouches for the half' in shown.notes[0]


def test_a_half_of_elsewhere_begins_anew(server, get):
  server.script = [serving(cut=100_000)]
  refused(get, attempts=1)
  with FileServer() as mirror:
    # Its tag is the same, as that of any first version may be.
    mirror.files[f'/{NAME}'] = OTHER
    get(url=mirror.url)
    assert mirror.gets == [(f'/{NAME}', None)]
  assert_finished(get, OTHER)


def test_a_half_that_is_more_than_the_whole_begins_anew(server, get):
  server.script = [serving(cut=100_000)]
  refused(get, attempts=1)
  get.part.write_bytes(CONTENT + b'x')
  server.requests.clear()
  get()
  assert_finished(get)
  assert server.gets == [(f'/{NAME}', None)]


@pytest.mark.parametrize('cut', [0, 1, 40])
def test_a_cut_at_once_is_no_page(server, get, cut):
  server.script = [serving(cut=cut)]
  get()
  assert_finished(get)


def test_a_size_that_is_never_reached(server, get):
  server.script = [serving(length=len(CONTENT) + 5)] * 9
  text = refused(get)
  assert 'the file is shorter there now' in text or 'was cut at' in text
  assert not get.path.exists()


def test_a_large_size_that_is_never_reached_ends_too(server, get):
  large = packed(3, 3 << 20)
  server.files[f'/{NAME}'] = large
  server.script = [serving(length=len(large) + 5)] * 40
  refused(get)
  # Each start has its bytes, but none has more than the first.
  assert len(server.gets) == 3


def test_a_size_that_is_too_small_is_no_whole_file(server, get):
  server.script = [serving(length=200_000)]
  text = refused(get)
  assert 'is no whole gzip file' in text
  assert 'was removed: the same command fetches it anew' in text
  assert not get.part.exists()
  get()
  assert_finished(get)


def test_a_bit_that_flipped_on_the_way_is_found(server, get):
  damaged = bytearray(CONTENT)
  damaged[150_000] ^= 1
  server.files[f'/{NAME}'] = bytes(damaged)
  assert 'is no whole gzip file (CRC check failed' in refused(get)
  assert not get.path.exists()


def test_a_chunked_answer_has_an_end_of_its_own(server, get):
  def chunked(handler, *, ends=True):
    handler.protocol_version = 'HTTP/1.1'
    handler.answer(200, Transfer_Encoding='chunked', ETag='"v1"')
    handler.wfile.write(b'%x\r\n%b\r\n' % (len(CONTENT), CONTENT))
    handler.wfile.write(b'0\r\n\r\n' if ends else b'')
    handler.close_connection = True

  server.script = [lambda handler: chunked(handler, ends=False), chunked]
  shown = get()
  assert_finished(get)
  assert shown.steps[-1] == (NAME, len(CONTENT), None)
  assert 'the connection was cut' in shown.notes[0]


def test_an_answer_without_any_end_is_refused(server, get):
  server.script = [sending(b'HTTP/1.0 200 OK\r\n\r\n' + CONTENT)]
  assert 'does not say how long it is' in refused(get)


# What a server says.


@pytest.mark.parametrize('code', [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_with_its_range(server, get, code):
  server.files['/elsewhere'] = server.files.pop(f'/{NAME}')
  there = answering(code, Location='/elsewhere')
  server.script = [there, serving(cut=1000), there]
  get()
  assert_finished(get)
  assert server.gets[-1] == ('/elsewhere', 'bytes=1000-')
  assert get.record[NAME].url == f'{server.url}/{NAME}'


def test_a_redirect_to_itself_ends(server, get):
  server.script = [answering(302, Location=f'/{NAME}')] * 50
  assert 'is redirected without end' in refused(get)
  assert len(server.gets) < 20


def test_a_redirect_to_nowhere(server, get):
  server.script = [answering(302)]
  assert 'or to nowhere (302)' in refused(get)


@pytest.mark.parametrize(
  'target', ['file:///etc/passwd', 'ftp://a.example/f', 'data:,x', 'x:y']
)
def test_a_redirect_out_of_the_web_is_refused(server, get, target):
  server.script = [answering(302, Location=target)]
  text = refused(get)
  assert f'redirects to {target!r}, which is not followed' in text


@pytest.mark.parametrize(
  'target', ['http://a..b/', 'http://[x', 'http://127.0.0.1:port/']
)
def test_a_redirect_to_a_place_that_cannot_be(server, get, target):
  server.script = [answering(302, Location=target)] * 3
  assert 'the connection failed (' in refused(get)


def test_a_redirect_out_of_encryption_is_refused():
  request = transfer.urllib.request.Request('https://a.example/f')
  with pytest.raises(InputError, match='only https are'):
    transfer._Redirects().http_error_302(
      request, None, 302, 'Found', {'location': 'http://a.example/f'}
    )


@pytest.mark.parametrize(
  ('code', 'sentence'),
  [
    (404, 'is not there (404): it may have moved, see https://owners.example/'),
    (410, 'is not there (410)'),
    (403, 'is refused (403): it may need a login'),
    (400, 'the server answers 400'),
    (204, 'the server answers 204'),
  ],
)
def test_an_answer_that_is_no_file_is_not_asked_for_twice(
  server, get, code, sentence
):
  server.script = [answering(code)]
  assert sentence in refused(get)
  assert len(server.gets) == 1
  assert not get.path.parent.exists()


@pytest.mark.parametrize('code', [429, 500, 502, 503, 504])
def test_a_failure_that_may_pass_is_asked_again(server, get, pauses, code):
  server.script = [answering(code)] * 2
  get()
  assert_finished(get)
  assert pauses == [1, 2]


def test_it_waits_for_what_the_server_asks_within_reason(server, get, pauses):
  server.script = [answering(503, Retry_After='7')]
  get()
  assert pauses == [7]


def test_it_does_not_wait_for_an_hour(server, get, pauses):
  server.script = [answering(429, Retry_After='3600')]
  assert 'is busy (429) and asks for 3,600 seconds' in refused(get)
  assert pauses == []


def test_a_date_to_wait_for_may_have_passed(server, get, pauses):
  past = 'Fri, 02 Jan 2015 10:00:00 GMT'
  server.script = [
    answering(503, Retry_After=past),
    answering(503, Retry_After='soon'),
  ]
  get()
  assert pauses == [0, 2]


def test_a_page_in_the_place_of_data_is_shown(server, get):
  page = b'<!DOCTYPE html><title>Log in</title>' + b' ' * 500
  server.script = [answering(200, page)]
  text = refused(get)
  assert "is no gzip file, it begins with b'<!DOCTYPE html>" in text
  assert not get.path.parent.exists()


def test_a_page_does_not_cost_the_half_that_is_here(server, get):
  server.script = [serving(cut=100_000), answering(200, b'<html>' * 30)]
  refused(get)
  assert get.part.read_bytes() == CONTENT[:100_000]
  get()
  assert_finished(get)
  assert server.gets[-1] == (f'/{NAME}', 'bytes=100000-')


@pytest.mark.parametrize('body', [b'<html>' * 30, b'', b'\n\n'])
def test_a_page_or_nothing_in_the_place_of_a_table(server, tmp_path, body):
  server.files['/r.csv'] = body
  file = RemoteFile('r.csv', f'{server.url}/r.csv', 'https://owners.example/')
  with pytest.raises(InputError, match='is no table, it begins with'):
    download([file], tmp_path, DownloadConfig(), Shown())


def test_a_table_that_is_not_packed(server, tmp_path):
  server.files['/r.csv'] = b'A1,B2,5.0,1400000000\n'
  file = RemoteFile('r.csv', f'{server.url}/r.csv', 'https://owners.example/')
  download([file], tmp_path, DownloadConfig(), Shown())
  assert (tmp_path / 'r.csv').read_bytes() == server.files['/r.csv']


# Networks.


def test_a_closed_port(get):
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    url = f'http://127.0.0.1:{taken.getsockname()[1]}'
    text = refused(get, url=url)
  assert 'nobody answers there (connection refused), 3 times in a row' in text
  assert 'try again later, or see https://owners.example/' in text
  assert not get.path.parent.exists()


@pytest.mark.parametrize(
  ('error', 'sentence'),
  [
    (socket.gaierror(-2, 'Name or service not known'), 'host name is not know'),
    (OSError(101, 'Network is unreachable'), 'no route to the network'),
    (OSError(113, 'No route to host'), 'there is no route to it'),
    (TimeoutError('timed out'), 'silent for 1 seconds'),
    (OSError(99, 'Odd'), "the connection failed ('[Errno 99] Odd')"),
  ],
)
def test_no_network_is_said_in_words(get, monkeypatch, error, sentence):
  def connect(*arguments, **settings):
    raise error

  monkeypatch.setattr(socket, 'create_connection', connect)
  assert sentence in refused(get)


def test_a_certificate_that_is_not_trusted_is_not_tried_again(
  get, monkeypatch, pauses
):
  cause = transfer.ssl.SSLCertVerificationError(1, 'failed')
  cause.verify_message = 'certificate has expired'

  def connect(self):
    raise cause

  monkeypatch.setattr(http.client.HTTPSConnection, 'connect', connect)
  text = refused(get, url='https://127.0.0.1:9')
  assert 'is not trusted (certificate has expired)' in text
  assert pauses == []


def test_a_server_that_falls_silent(server, get):
  server.script = [serving(cut=100_000, hang=True)]
  text = refused(get, attempts=1)
  assert 'silent for 1 seconds' in text
  assert '100.0 kB are kept' in text
  get()
  assert_finished(get)


def test_something_that_is_no_web_server(server, get):
  server.script = [sending(b'SSH-2.0-OpenSSH_9.6\r\n')] * 3
  assert 'the connection failed' in refused(get)


# What is here already.


def test_a_second_command_checks_and_fetches_nothing(server, get):
  get()
  server.requests.clear()
  shown = get()
  assert_finished(get)
  assert [request.method for request in server.requests] == ['HEAD']
  assert shown.notes == [f'{NAME} is here, 300.0 kB, unchanged']


def test_a_second_command_needs_no_server(server, get):
  get()
  before = get.record
  del server.files[f'/{NAME}']
  shown = get()
  assert get.record == before
  assert 'is not compared with the server' in shown.notes[-1]


def test_what_was_damaged_here_is_named(server, get):
  get()
  content = bytearray(CONTENT)
  content[-1] ^= 1
  get.path.write_bytes(content)
  text = refused(get)
  assert f'{get.path} was changed after it was written (its sha256' in text
  assert 'remove it, and the same command fetches it anew' in text
  get.path.unlink()
  get()
  assert_finished(get)


def test_what_changed_on_the_server_is_said_and_stays(server, get):
  get()
  server.files[f'/{NAME}'], server.etag = OTHER, '"v2"'
  shown = get()
  assert_finished(get)
  assert 'changed on the server (its ETag was "v1", and is' in shown.notes[-1]
  assert '--refresh takes the new one' in shown.notes[-1]
  shown = get(refresh=True)
  assert_finished(get, OTHER)
  server.requests.clear()
  shown = get(refresh=True)
  assert [request.method for request in server.requests] == ['HEAD']
  assert 'the server has nothing newer' in shown.notes[0]


def test_other_content_than_at_first_is_not_taken_unawares(server, get):
  get()
  get.path.unlink()
  # Of one size, tag and date: the sha256 alone tells.
  server.files[f'/{NAME}'] = OTHER
  text = refused(get)
  assert 'is not what it was when it was first fetched' in text
  assert hashlib.sha256(CONTENT).hexdigest() in text
  assert not get.path.exists()
  server.requests.clear()
  get(refresh=True)
  assert_finished(get, OTHER)
  assert server.gets == []


def test_a_mirror_is_compared_by_what_is_in_the_file(server, get):
  get()
  with FileServer() as mirror:
    mirror.files[f'/{NAME}'], mirror.etag = CONTENT, '"mirror"'
    shown = get(url=mirror.url)
    assert not any('changed' in note for note in shown.notes[1:])
    get.path.unlink()
    mirror.files[f'/{NAME}'] = OTHER
    assert 'is not what it was' in refused(get, url=mirror.url)


def test_a_file_that_the_user_put_there_is_checked_and_kept(server, get):
  get.path.parent.mkdir()
  get.path.write_bytes(CONTENT)
  shown = get()
  assert_finished(get)
  assert server.gets == []
  assert 'was here already' in shown.notes[0]


def test_another_file_of_that_name_is_in_the_way(server, get):
  get.path.parent.mkdir()
  get.path.write_bytes(OTHER[:1000])
  text = refused(get)
  assert 'is not what the server has (its size was 1000, and is' in text
  assert get.path.read_bytes() == OTHER[:1000]
  get.path.write_bytes(bytes(len(CONTENT)))
  assert 'is no whole gzip file' in refused(get)
  get.path.unlink()
  get.path.mkdir()
  assert 'is a folder, a file was expected' in refused(get)


@pytest.mark.parametrize(
  'text',
  [
    '{',
    '[]',
    '{"files": []}',
    '{"files": {"a": 1}}',
    '{"files": {"a": {"url": 1, "bytes": 1, "sha256": "", "etag": "", '
    '"last_modified": ""}}}',
  ],
)
def test_a_damaged_record_is_named(get, text):
  get()
  record = get.path.parent / 'download.json'
  record.write_text(text)
  assert f'{record} is damaged: remove it' in refused(get)
  record.unlink()
  get()
  assert_finished(get)


# Disks.


def test_a_disk_that_is_too_small_is_said_before(server, get, small_disk):
  folder = small_disk('200k')
  text = refused(get, folder=folder / 'out')
  assert f'{NAME} needs 300.0 kB more, and {folder / "out"} has' in text
  assert not (folder / 'out').exists()


def test_a_disk_that_fills_up_keeps_what_came(
  server, get, small_disk, monkeypatch
):
  folder = small_disk('200k')
  # As where others write to the disk meanwhile.
  monkeypatch.setattr(transfer, '_check_room', lambda *arguments: None)
  text = refused(get, folder=folder / 'out')
  assert 'cannot be written: the disk is full' in text
  part = folder / 'out' / f'{NAME}.part'
  assert 0 < part.stat().st_size < len(CONTENT)
  assert CONTENT.startswith(part.read_bytes())
  small_disk('2m')
  get(folder=folder / 'out')
  assert (folder / 'out' / NAME).read_bytes() == CONTENT
  assert server.gets[-1][1].startswith('bytes=')


def test_a_folder_that_another_process_uses(get):
  with (
    locked_folder(get.path.parent, '--output_dir'),
    pytest.raises(InputError, match='is in use by process'),
  ):
    get()
