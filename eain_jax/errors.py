"""The one exception that a user's mistake raises.

Binaries print its message and exit with 1, without a traceback; every other
exception is a defect of this library and keeps its traceback.
"""


class InputError(Exception):
  """Bad input: one sentence that names file, line and value, and what to do."""


class BadSettings(InputError):
  """Settings that cannot be trained here, where others may be.

  Attributes:
    reason: without the advice.
  """

  def __init__(self, reason: str, advice: str):
    super().__init__(f'{reason}: {advice}')
    self.reason = reason


class InUse(InputError):
  """Another process has the folder."""


class Interrupted(BaseException):
  """A command was told to stop; what it is to go on from is saved.

  As KeyboardInterrupt, no handler of errors takes it for one.
  """
