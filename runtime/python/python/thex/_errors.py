"""Exceptions, one class for each kind of error that the command line has an exit status for."""

from __future__ import annotations

from typing import Optional


class ThexError(Exception):
    """An error of thex: what went wrong, why, and what to do.

    ``code`` is the stable code that the command line shows too; ``thex.explain(code)`` says more. ``help`` is advice, where there is any.
    """

    code: str
    help: Optional[str]

    def __init__(self, message: str, code: str = "", help: Optional[str] = None) -> None:
        super().__init__(message)
        self.code = code
        self.help = help

    def __str__(self) -> str:
        message = super().__str__()
        return f"[{self.code}] {message}" if self.code else message

    def __reduce__(self) -> tuple[type[ThexError], tuple[str, str, Optional[str]]]:
        return type(self), (str(self.args[0]), self.code, self.help)


class InvalidError(ThexError, ValueError):
    """A file, an argument or data is not usable."""


class UnsupportedError(ThexError):
    """The model holds what thex cannot compile, or a result cannot be made safe to share."""


class InfeasibleError(ThexError):
    """No encoding or parameters satisfy what was asked for, or it does not fit into memory."""


class ServiceError(ThexError):
    """A service cannot be reached, or refuses what was asked of it."""


class StoppedError(ThexError):
    """A run was stopped, and can go on."""


class InternalError(ThexError):
    """A bug of thex."""


_KINDS: dict[str, type[ThexError]] = {
    "invalid input": InvalidError,
    "unsupported": UnsupportedError,
    "infeasible": InfeasibleError,
    "service": ServiceError,
    "stopped": StoppedError,
    "internal": InternalError,
}


def of(kind: str, message: str, code: str, help: str) -> ThexError:
    """The exception of an error of the extension."""
    return _KINDS.get(kind, ThexError)(message, code, help)
