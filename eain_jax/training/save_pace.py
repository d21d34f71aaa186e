"""How often a run on an accelerator saves: as often as the time allows."""

import jax

# Of the time on an accelerator, that saves may take.
SAVING_SHARE = 0.1


def saving_share(num_together: int) -> float:
  """Of the time that one of several runs may save, while the others wait."""
  if jax.default_backend() == 'cpu':
    return 1.0
  return SAVING_SHARE / num_together


class SavePace:
  """Holds saves back where they would take more than a share of the time.

  A save costs a CPU's step or two, but as much as hundreds of an accelerator's.

  Args:
    share: of the time.
  """

  def __init__(self, share: float):
    self.share = share
    self._next = 0.0

  @property
  def holds(self) -> bool:
    """Whether it ever holds a save back."""
    return self.share < 1

  def allows(self, now: float) -> bool:
    """Whether a save may begin."""
    return now >= self._next

  def saved(self, begin: float, end: float) -> None:
    """A save has kept the run waiting, from `begin` to `end`."""
    if self.holds:
      self._next = end + (end - begin) * (1 / self.share - 1)
