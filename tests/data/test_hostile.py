"""Input that is made to do harm, through the binary, and its memory."""

import ast
import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REVIEW = {'reviewerID': 'A1', 'asin': 'B1', 'overall': 5.0, 'unixReviewTime': 7}
DEEP = '[' * 100_000 + ']' * 100_000
OWN = '--columns=user=u,item=i,timestamp=t'


# A child of this process would count our own memory, from before its exec.
RUN = """
import resource, subprocess, sys
command = [sys.executable, '-m', 'experiments.prepare_data', *sys.argv[1:]]
code = subprocess.call(command)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def prepare(tmp_path, *flags):
  """Exit code, standard error, and MB of memory of the binary."""
  out = f'--output_dir={tmp_path / "out"}'
  done = subprocess.run(
    [sys.executable, '-c', RUN, out, '--negatives=1', '--eval_negatives=1']
    + list(flags),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  kilobytes = float(done.stdout.splitlines()[-1])
  return done.returncode, done.stderr, kilobytes / 1e3


def refusal(tmp_path, *flags):
  code, stderr, megabytes = prepare(tmp_path, *flags)
  assert code == 1
  assert re.fullmatch(r'prepare_data: [^\n]*\n', stderr)
  assert megabytes < 300
  assert not (tmp_path / 'out').exists()
  return stderr


def test_a_gzip_that_fills_the_memory(tmp_path):
  path = tmp_path / 'a.gz'
  line = json.dumps(REVIEW).encode() + b'\n'
  for content in (line * (1 << 20), line + b'x' * (96 << 20)):
    path.write_bytes(gzip.compress(content))
    assert '--max_inflation' in refusal(tmp_path, f'--reviews={path}')


def test_one_line_of_3_gb(tmp_path):
  path = tmp_path / 'a'
  path.write_text((json.dumps(REVIEW) + '\n') * 99)
  # A hole takes no room on the disk.
  os.truncate(path, 3 << 30)
  message = refusal(tmp_path, f'--reviews={path}')
  assert f'{path}, line 100: longer than 16 MiB' in message


@pytest.mark.parametrize('kind', ['reviews', 'literal', 'metadata', 'own'])
def test_json_of_great_depth_is_one_rejected_line(tmp_path, kind):
  days = [(n % 10, n % 37, 86_400 * n) for n in range(100)]
  reviews = tmp_path / 'reviews'
  lines = [
    json.dumps(
      {
        **REVIEW,
        'reviewerID': f'A{user}',
        'asin': f'B{item}',
        'unixReviewTime': time,
      }
    )
    for user, item, time in days
  ]
  flags = [f'--reviews={reviews}', '--max_rejected=0.1']
  metadata = [f'{{"asin": "B{n}"}}' for n in range(37)]
  if kind == 'reviews':
    lines.append(json.dumps(REVIEW)[:-1] + f', "z": {DEEP}}}')
  elif kind == 'own':
    lines = [f'{{"u": {u}, "i": {i}, "t": {t}}}' for u, i, t in days]
    lines.append(f'{{"u": 1, "i": 1, "t": 1, "z": {DEEP}}}')
    flags = [f'--events={reviews}', OWN, '--max_rejected=0.1']
  else:
    quote = "'" if kind == 'literal' else '"'
    metadata.append(f'{{{quote}asin{quote}: {DEEP}}}')
    (tmp_path / 'meta').write_text('\n'.join(metadata))
    flags.append(f'--metadata={tmp_path / "meta"}')
  reviews.write_text('\n'.join(lines))
  code, stderr, megabytes = prepare(tmp_path, *flags)
  assert (code, stderr) == (0, '')
  assert megabytes < 300
  [rejected] = (tmp_path / 'out' / 'rejected.jsonl').read_text().splitlines()
  line = {'reviews': 101, 'own': 101}.get(kind, 38)
  assert json.loads(rejected)['line'] == line


FORBIDDEN = {
  'eval', 'exec', 'compile', 'pickle', 'marshal', 'shelve', 'dill', 'joblib',
  'tarfile', 'zipfile', 'yaml', '__import__',
}  # fmt: skip


def test_nothing_here_runs_what_a_file_says():
  """No eval, exec, pickle or tar in the package; arrays without pickles."""
  found = []
  for path in sorted((ROOT / 'eain_jax').rglob('*.py')):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        found += [(path.name, n.name.split('.')[0]) for n in node.names]
      elif isinstance(node, ast.ImportFrom):
        found.append((path.name, (node.module or '').split('.')[0]))
      elif isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name):
          found.append((path.name, node.func.id))
        text = ast.unparse(node)
        if text.startswith(('np.load(', 'numpy.load(')):
          assert 'allow_pickle=False' in text, path
  assert not [(name, word) for name, word in found if word in FORBIDDEN]
