"""Runs a program as a user would, with others in place of a cluster's."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def child(tmp_path):
  """child(code): a command that runs these lines of Python."""

  def make(code):
    path = tmp_path / 'child.py'
    path.write_text(
      'import os, signal, subprocess, sys, time\n'
      "rank = int(os.environ.get('JAX_PROCESS_ID', -1))\n"
      + textwrap.dedent(code)
    )
    return [sys.executable, str(path)]

  return make


@pytest.fixture
def commands(tmp_path, monkeypatch):
  """commands(name=code): programs of these names, written in Python, on PATH.

  They find the folder for their notes in NOTES.
  """
  monkeypatch.setenv('NOTES', str(tmp_path))
  folder = tmp_path / 'bin'
  folder.mkdir()
  monkeypatch.setenv('PATH', f'{folder}{os.pathsep}{os.environ["PATH"]}')

  def make(**codes):
    for name, code in codes.items():
      path = folder / name
      path.write_text(
        f'#!{sys.executable}\n'
        'import os, pathlib, signal, subprocess, sys, time\n'
        "notes = pathlib.Path(os.environ['NOTES'])\n" + textwrap.dedent(code)
      )
      path.chmod(path.stat().st_mode | stat.S_IXUSR)

  return make


# A test run in the background may ignore signals, and so would its children: a
# shell cannot trap what was ignored when it began.
AS_AT_LOGIN = """
import os, signal, sys
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
  signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def start():
  """start(command, **environment): a running program; ended with the test."""
  started = []

  def make(command, **environment):
    # JAX's flags of the tests are not the user's.
    base = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    process = subprocess.Popen(
      [sys.executable, '-c', AS_AT_LOGIN, *(str(word) for word in command)],
      cwd=ROOT,
      env={**base, **environment},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      # What a readline() has not taken is left for communicate().
      bufsize=0,
      start_new_session=True,
    )
    started.append(process)
    return process

  yield make
  for process in started:
    # What a test that fails has left there.
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    # Others may hold its pipes; a test that has failed is not to hang too.
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.communicate(timeout=5)


@pytest.fixture
def finish():
  """finish(process): its exit code and the lines that it wrote."""

  def wait(process, timeout=30):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out.splitlines(), err.splitlines()

  return wait
