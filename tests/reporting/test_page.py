"""The page: well formed, whole in itself, and nothing of the data is markup."""

import base64
import html.parser
import re

import pytest

from eain_jax.artifacts import write_text
from eain_jax.reporting.document import table1_report
from eain_jax.reporting.page import render_page
from eain_jax.reporting.table1 import build_table1

_VOID = {'meta', 'img', 'br', 'link'}


class _Reader(html.parser.HTMLParser):
  """Checks that tags close in order; collects tags, attributes and text."""

  def __init__(self, page):
    super().__init__()
    self.open, self.tags, self.attributes, self.text = [], [], [], ''
    self.feed(page)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in _VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


@pytest.fixture
def make_page(fake, tmp_path):
  def make(figures=('Curves',), **manifest):
    runs, paths = fake.runs(2), {}
    for number, name in enumerate(figures):
      paths[name] = tmp_path / f'{number}.png'
      paths[name].write_bytes(b'\x89PNG' + bytes([number]))
    table = build_table1(runs, fake.manifest(**manifest), fake.no_ceilings)
    return render_page(table1_report(table), paths)

  return make


def test_well_formed_and_complete(make_page):
  reader = _Reader(make_page())
  assert reader.open == []
  for heading in (
    'Measured',
    'Which claims of Table 1 hold here',
    'The paper against its own equations',
    'Protocol',
    'Training and calibration',
    'Flags',
    'Versions',
  ):
    assert heading in reader.text
  for value in ('0.8050 ± 0.0635', '0.845', 'ab' * 32, '--paim_layers=2'):
    assert value in reader.text


def test_opens_offline(make_page):
  page = make_page(('Curves', 'AUC'))
  reader = _Reader(page)
  assert not {'script', 'link', 'iframe', 'object'} & set(reader.tags)
  sources = [v for k, v in reader.attributes if k in ('src', 'href')]
  assert sources == [
    'data:image/png;base64,' + base64.b64encode(b'\x89PNG' + end).decode()
    for end in (b'\x00', b'\x01')
  ]
  style = re.search('<style>(.*?)</style>', page, re.DOTALL)
  assert style is not None
  assert 'url(' not in style[1]
  assert '@import' not in style[1]


def test_hostile_text_stays_text(make_page):
  evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m'
  page = make_page(
    (evil,),
    sources=[{'name': evil, 'bytes': 1, 'sha256': evil, 'format': evil}],
    notes=[evil],
    features=[{'name': evil, 'kind': evil, 'num_rows': 1, 'max_values': 1}],
    counts={
      'events': 1,
      'users': 1,
      'items': 1,
      evil: 1,
      **{
        part: {
          'positives': 1,
          'examples': 5,
          'requests': 1,
          'requests_without_positive': 0,
        }
        for part in ('train', 'valid', 'test')
      },
    },
  )
  reader = _Reader(page)
  assert reader.open == []
  assert 'script' not in reader.tags
  assert reader.tags.count('img') == 1
  assert not any(name.startswith('on') for name, _ in reader.attributes)
  assert reader.text.count('<script>alert(1)</script>') >= 6
  assert '\x1b' not in page


def test_light_dark_and_narrow(make_page):
  page = make_page()
  assert 'prefers-color-scheme: dark' in page
  assert '<meta name="viewport" content="width=device-width' in page
  # Every table scrolls by itself, so the page never does sideways.
  assert page.count('<table>') == page.count('<div class="scroll"')


def test_write_text_replaces_whole(tmp_path):
  path = tmp_path / 'report.html'
  for text in ('one', 'zwei ±'):
    write_text(path, text)
    assert path.read_text(encoding='utf-8') == text
  assert list(tmp_path.iterdir()) == [path]
