"""What waits is scored together, in order, each answer to whom it belongs."""

import asyncio
import threading

import numpy as np

from eain_jax.serving.batcher import Batcher
from eain_jax.serving.candidates import Rows


def rows(*numbers, history=None):
  given = None if history is None else [[history]] * len(numbers)
  times = None if history is None else [[1]] * len(numbers)
  users = [str(n) for n in numbers]
  return Rows(users, users, [0] * len(users), {'c': users}, given, times, {})


class Model:
  """Scores a row by its user's number; its first batch waits for `go`."""

  def __init__(self):
    self.batches, self.go = [], threading.Event()

  def __call__(self, rows):
    self.batches.append(rows)
    self.go.wait()
    return np.array([float(user) for user in rows.user], np.float32)


def run(model, *asked, max_rows=4):
  """The answers to all that is asked while the first is scored."""

  async def all_at_once():
    batcher = Batcher(model, max_rows)
    tasks = []
    for one in asked:
      tasks.append(asyncio.create_task(batcher.score(one)))
      await asyncio.sleep(0.01)
    model.go.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    batcher.close()
    return found

  return asyncio.run(all_at_once())


def test_what_comes_meanwhile_is_one_batch():
  model = Model()
  found = run(model, rows(1), rows(2, 3), rows(4), rows(5, 6))
  assert [list(f) for f in found] == [[1], [2, 3], [4], [5, 6]]
  assert [batch.user for batch in model.batches] == [
    ['1'],
    ['2', '3', '4'],
    ['5', '6'],
  ]
  assert model.batches[1].context == {'c': ['2', '3', '4']}


def test_whoever_has_gone_leaves_no_rows_and_cuts_no_batch():
  model = Model()

  async def some_leave():
    batcher = Batcher(model, 4)
    ask = lambda *numbers: asyncio.create_task(batcher.score(rows(*numbers)))
    first = ask(1)
    await asyncio.sleep(0.01)
    left, gone, last = ask(2, 3), ask(7, 8, 9), ask(4, 5)
    await asyncio.sleep(0.01)
    gone.cancel()
    await asyncio.sleep(0.01)
    assert gone.cancelled()
    assert len(batcher._queue) == 2
    model.go.set()
    found = await asyncio.gather(first, left, last)
    batcher.close()
    return found

  assert [list(f) for f in asyncio.run(some_leave())] == [[1], [2, 3], [4, 5]]
  users = [batch.user for batch in model.batches]
  assert users == [['1'], ['2', '3', '4', '5']]


def test_histories_of_their_own_stand_apart():
  model = Model()
  found = run(model, rows(1), rows(2), rows(3, history='h'), rows(4))
  assert [list(f) for f in found] == [[1], [2], [3], [4]]
  assert [batch.user for batch in model.batches] == [['1'], ['2'], ['3'], ['4']]
  assert [batch.history for batch in model.batches][2] == [['h']]


def test_one_larger_than_a_batch_is_scored_alone():
  [found] = run(Model(), rows(*range(9)), max_rows=2)
  assert list(found) == list(range(9))


def test_an_error_reaches_those_alone_whose_rows_raise_it():
  model = Model()
  found = run(model, rows(0), rows(1), rows('x'), rows(3))
  assert [list(found[n]) for n in (0, 1, 3)] == [[0], [1], [3]]
  assert isinstance(found[2], ValueError)


def test_whoever_went_away_is_not_scored():
  model = Model()

  async def one_goes():
    batcher = Batcher(model, 4)
    first = asyncio.create_task(batcher.score(rows(1)))
    await asyncio.sleep(0.01)
    gone = asyncio.create_task(batcher.score(rows(2)))
    stays = asyncio.create_task(batcher.score(rows(3)))
    await asyncio.sleep(0.01)
    gone.cancel()
    await asyncio.sleep(0.01)
    model.go.set()
    found = await asyncio.gather(first, stays)
    batcher.close()
    return [list(one) for one in found]

  assert asyncio.run(one_goes()) == [[1], [3]]
  assert [batch.user for batch in model.batches] == [['1'], ['3']]
