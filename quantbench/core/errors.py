"""Everything quantbench raises on purpose, each with one sentence: what happened, why, and what to do.

QuantbenchError              exit code 2, status ``error``
├── UsageError               bad user input: options, names, files
│   └── MatrixError          a bad matrix file: names the file, the place and the key
├── ModelError               a model or checkpoint that cannot be used
├── UnsupportedError         something that cannot run here; status ``skipped``
│   └── MissingDependency    an extra that is not installed; the sentence holds the pip command, from ``core.install``
├── ChildError               a process that quantbench started ended badly, or took too long
├── OutOfMemoryError         it ran out of memory; status ``oom``
└── StoreError               results cannot be read or written
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from quantbench.core.text import quoted, shortened


class QuantbenchError(Exception):
    """Base of all errors with a message meant for the user."""

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        """Whatever ``message`` quotes, it is cut to a length that people can read."""
        super().__init__(shortened(message))


class UsageError(QuantbenchError):
    """Bad user input."""


class MatrixError(UsageError):
    """A matrix file that cannot be read or that asks for something impossible."""


class ModelError(QuantbenchError):
    """A model or checkpoint that cannot be used."""


class UnsupportedError(QuantbenchError):
    """Something that cannot run here; its scenario is skipped with this sentence as the reason."""


class MissingDependency(UnsupportedError):  # noqa: N818 - reads as the state it reports
    """A method needs a package that is not installed."""


class StoreError(QuantbenchError):
    """Results cannot be read or written."""


class ChildError(QuantbenchError):
    """A process that quantbench started for a ``task`` failed: how it ended, and the ``reason`` that it gave.

    ``refused``: the reason is the message of a QuantbenchError. ``code`` is the exit code, a negative signal number if a signal
    killed it, 0 after a timeout. ``said`` is all that it wrote to stderr.
    """

    def __init__(self, task: str, how: str, reason: str = "", *, refused: bool = False, code: int = 0, said: str = "") -> None:
        """The message is the process's own sentence if it refused."""
        super().__init__(reason if refused else f"{task} {how}" + (f" ({reason})" if reason else ""))
        self.reason, self.refused, self.code, self.said = reason or how, refused, code, said


class OutOfMemoryError(QuantbenchError, MemoryError):
    """A process that quantbench started ran out of memory."""


def told(error: QuantbenchError | OSError) -> str:
    """What a user is told of an error that is no fault of this program: its own sentence, or the system's and the file."""
    if isinstance(error, OSError) and not isinstance(error, QuantbenchError):
        why = error.strerror or type(error).__name__
        return shortened(f"{why}: {error.filename}" if error.filename else why)
    return str(error)


_MOST_LISTED = 50
_LONGEST_NAME = 200
"""Characters of a name that may be a slip of the pen."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not registered, with the nearest known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=2) if len(name) <= _LONGEST_NAME else []
    listed = names if len(names) <= _MOST_LISTED else [*names[:_MOST_LISTED], f"and {len(names) - _MOST_LISTED} more"]
    hint = f"did you mean {' or '.join(repr(candidate) for candidate in near)}?" if near else "known: " + ", ".join(listed)
    return UsageError(f"unknown {kind} {quoted(name)}; {hint}")
