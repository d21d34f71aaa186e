"""Signals: heard where the main thread stands, or held off, or beside it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from eain_jax.errors import Interrupted
from eain_jax.stopping import STOPPED, stop_signals


def signal_self(number):
  os.kill(os.getpid(), number)
  time.sleep(0.01)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_raises_where_the_main_thread_stands(number):
  before = signal.getsignal(number)
  with pytest.raises(Interrupted), stop_signals():
    signal_self(number)
  assert signal.getsignal(number) is before


def test_no_handler_of_errors_takes_it_for_one():
  assert not issubclass(Interrupted, Exception)


def test_what_would_be_lost_is_held():
  with stop_signals() as stop:
    stop.can_end = True
    with stop.held(), stop.may_end():
      stop.can_end = False
      signal_self(signal.SIGTERM)
      assert stop.asked
      with pytest.raises(Interrupted):
        stop.check()
    assert stop.can_end


def test_where_nothing_would_be_lost_it_is_not_held():
  with stop_signals() as stop, stop.held():
    stop.can_end = True
    with pytest.raises(Interrupted):
      signal_self(signal.SIGTERM)


def test_one_within_another_is_the_same():
  with stop_signals() as outer, stop_signals() as inner:
    assert inner is outer


def test_another_thread_changes_nothing():
  before, found = signal.getsignal(signal.SIGTERM), []

  def run():
    with stop_signals() as stop:
      found.append((stop.asked, signal.getsignal(signal.SIGTERM)))

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert found == [(False, before)]


SCRIPT = """
import signal, sys, time
from eain_jax.stopping import stop_signals
with stop_signals() as stop:
  with stop.held():
    print('ready', flush=True)
    while not stop.asked:
      time.sleep(0.01)
    if 'ignore' in sys.argv:
      stop.ignore()
    print('asked', flush=True)
    time.sleep({seconds})
print('ended', flush=True)
"""


@pytest.mark.parametrize('ignore', [False, True])
def test_a_second_signal_ends_the_process_unless_it_is_about_to_end(ignore):
  script = SCRIPT.format(seconds=1 if ignore else 60)
  run = subprocess.Popen(
    [sys.executable, '-c', script, *(['ignore'] if ignore else [])],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert run.stdout
  assert run.stdout.readline() == 'ready\n'
  run.send_signal(signal.SIGTERM)
  assert run.stdout.readline() == 'asked\n'
  run.send_signal(signal.SIGTERM)
  assert run.wait(20) == (0 if ignore else -signal.SIGTERM)


def test_the_exit_code_is_that_of_a_temporary_failure():
  assert os.EX_TEMPFAIL == STOPPED
