"""Work done in a fork, so that its imports and memory do not count as this process's."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import TypeVar

from quantbench.core.errors import ModelError

_T = TypeVar("_T")


def apart(work: Callable[[], _T]) -> _T:
    """Run ``work`` in a fork, and return or raise what it does; only for single-threaded processes.

    ModelError where the fork ends without a result: something killed it.
    """
    reading, writing = os.pipe()
    forked = os.fork()
    if not forked:
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as stream:
                stream.write(_done(work))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read()
    _, status = os.waitpid(forked, 0)
    if not said:
        raise ModelError(f"the process that reads the prompts ended with {os.waitstatus_to_exitcode(status)} and no result")
    found, raised = pickle.loads(said)  # noqa: S301 - our own fork wrote it
    if raised is not None:
        raise raised
    result: _T = found
    return result


def _done(work: Callable[[], _T]) -> bytes:
    try:
        return pickle.dumps((work(), None))
    except Exception as error:  # noqa: BLE001 - it is raised again in the parent
        return pickle.dumps((None, error))
