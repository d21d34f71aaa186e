"""The pages of docs/: their examples run, and no module is left out."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eain_jax import layers

ROOT = Path(__file__).parents[2]
PAGES = ROOT / 'docs'
EXAMPLES = [
  page.name for page in sorted(PAGES.glob('*.md')) if '>>> ' in page.read_text()
]
# Modules that are no room's.
AT_THE_TOP = 'settings.md'


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name == 'walkthrough.md'))
    for name in EXAMPLES
  ],
)
def test_the_examples_of_a_page_run(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  failed, tried = doctest.testfile(
    str(PAGES / name),
    module_relative=False,
    optionflags=doctest.NORMALIZE_WHITESPACE,
  )
  assert (failed, tried > 0) == (0, True)


def test_there_are_examples():
  assert {'layers.md', 'walkthrough.md'} <= {*EXAMPLES}


def test_the_axis_letters_are_those_of_the_package():
  in_package = re.findall(r'(?:^ |  )([A-Z])  \w', layers.__doc__, re.MULTILINE)
  page = (PAGES / 'layers.md').read_text()
  assert sorted(re.findall(r'\| ([A-Z]) \|', page)) == sorted(in_package)


def test_the_speeds_of_the_readme_are_those_of_the_page():
  readme = (ROOT / 'README.md').read_text().partition('## Speed')[2]
  rows = re.findall(r'^\| .* \|$', readme, re.MULTILINE)
  assert len(rows) > 2
  assert {*rows} <= {*(PAGES / 'benchmark.md').read_text().splitlines()}


def test_every_module_has_its_reference():
  for module in (ROOT / 'eain_jax').rglob('*.py'):
    parts = module.relative_to(ROOT).with_suffix('').parts
    if module.name == '__init__.py':
      continue
    page = AT_THE_TOP if len(parts) == 2 else f'{parts[1]}.md'
    lines = (PAGES / page).read_text().splitlines()
    assert f'::: {".".join(parts)}' in lines, f'{module} is not in {page}'


def test_every_command_is_listed():
  text = (PAGES / 'commands.md').read_text()
  for file in (ROOT / 'experiments').glob('*.py'):
    if "if __name__ == '__main__'" in file.read_text():
      assert f'`{file.stem}`' in text, file.name


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-d', tmp_path],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  page = (tmp_path / 'layers' / 'index.html').read_text()
  assert 'eain_jax.layers.attention.AdditiveAttention' in page
