"""The errors a caller can meet.

Every message says what was given, what was expected and what to do about it.
"""


class AutogemmError(Exception):
    """Base class of every error raised on purpose by autogemm."""


class InvalidProblem(AutogemmError, ValueError):
    """The caller's operands or options do not form a matrix product."""


class NoStrategy(AutogemmError, RuntimeError):
    """No strategy can serve the call; the message lists each one with its reasons."""


class DatabaseError(AutogemmError, ValueError):
    """A tuning table is damaged; the message holds the file and the path of the value in it."""


class PluginWarning(UserWarning):
    """A strategy that another package offers cannot be used; everything else goes on without it."""


class DatabaseWarning(UserWarning):
    """A tuning table, or one entry of it, is not used; calls go on with the safe default."""
