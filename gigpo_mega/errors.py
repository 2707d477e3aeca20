"""User-facing errors: one line, exit status 2. Any other exception is a bug and keeps its traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can fix; the message is one line: the value, the limit, the field, what to do."""


class ConfigError(UserError):
    """A configuration that cannot run; every rank of a launch finds the same one."""


def first(failure: BaseException) -> BaseException:
    """`failure`, or the first one in it if it is a group, however deep."""
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
