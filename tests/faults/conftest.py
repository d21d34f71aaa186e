"""A small world, and binaries that are started as a user starts them."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from launch.local import merge_device_count

ROOT = Path(__file__).parents[2]


class Binary:
  """A command that runs; its output goes to files."""

  def __init__(self, folder, *command, inject='', devices=1, **environment):
    words = [sys.executable, '-m']
    if inject:
      words += ['tests.faults.inject', f'--inject={inject}', '--']
    self.folder = folder
    self.process = subprocess.Popen(
      [*words, *map(str, command)],
      cwd=ROOT,
      env={
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': merge_device_count(os.environ['XLA_FLAGS'], devices),
        **environment,
      },
      stdout=(folder / 'stdout').open('w'),
      stderr=(folder / 'stderr').open('w'),
    )

  def wait(self, seconds=200):
    """Its exit code."""
    return self.process.wait(seconds)

  def check(self, code=0):
    assert self.wait() == code, self.errors()
    return self

  def errors(self):
    return (self.folder / 'stderr').read_text()

  def sentence(self):
    """What it said last; it ended in order, so there is no traceback."""
    assert 'Traceback' not in self.errors(), self.errors()
    return self.errors().strip().splitlines()[-1]


@pytest.fixture
def start(tmp_path_factory):
  """start(module, *flags, inject='', devices=1): a Binary that runs."""
  started = []

  def run(*command, **kwargs):
    folder = tmp_path_factory.mktemp('output')
    started.append(Binary(folder, *command, **kwargs))
    return started[-1]

  yield run
  for binary in started:
    if binary.process.poll() is None:
      binary.process.kill()
      binary.process.wait()


@pytest.fixture(scope='session')
def world(tmp_path_factory):
  """A prepared dataset of 3,000 synthetic events."""
  folder = tmp_path_factory.mktemp('world') / 'dataset'
  Binary(
    tmp_path_factory.mktemp('output'),
    'experiments.prepare_data',
    f'--output_dir={folder}',
    '--synthetic',
    '--num_events=3000',
    '--eval_negatives=20',
  ).check()
  return folder


def hash_state(tree):
  """sha256 over names, types, shapes and bytes of all leaves."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.asarray(leaf)
    digest.update(f'{path} {array.dtype} {array.shape}'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def final_record(work):
  """What the last checkpoint of a run says beside its state, without times."""
  latest = work / 'checkpoints' / 'latest'
  last = max(int(path.name) for path in latest.iterdir())
  record = json.loads((latest / str(last) / 'record' / 'metadata').read_text())
  loop = {k: v for k, v in record['loop'].items() if 'seconds' not in k}
  return {**record, 'loop': loop, 'sha256': None}


def summary(work):
  """All of a finished run but the times: equal where two runs are the same."""
  result = json.loads((work / 'result.json').read_text())
  return {
    'record': final_record(work),
    'metrics': (work / 'metrics.jsonl').read_text(),
    'result': {k: v for k, v in result.items() if 'second' not in k},
  }
