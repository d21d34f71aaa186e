import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from eain_jax.training import device_memory


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_the_peak_of_a_cpu_is_that_of_the_process():
  status = Path('/proc/self/status').read_text()
  (kilobytes,) = re.findall(r'VmHWM:\s+(\d+) kB', status)
  peak = device_memory.peak_bytes()
  assert peak == pytest.approx(1024 * int(kilobytes), rel=0.02)


def test_the_peak_of_accelerators_is_their_fullest_ones(monkeypatch):
  devices = [
    SimpleNamespace(memory_stats=lambda n=n: {'peak_bytes_in_use': n})
    for n in (5, 9, 7)
  ]
  monkeypatch.setattr(jax, 'local_devices', lambda: devices)
  assert device_memory.peak_bytes() == 9
