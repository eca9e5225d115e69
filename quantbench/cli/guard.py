"""Turn an exception into one sentence on stderr and an exit code."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec

import typer

from quantbench.cli.output import message
from quantbench.core.disks import full, means_full
from quantbench.core.ending import like_ctrl_c
from quantbench.core.errors import QuantbenchError, told

FAILED = 1
USAGE = 2
REGRESSION = 3
INSUFFICIENT = 4
INTERRUPTED = 130

DEBUG: ContextVar[bool] = ContextVar("debug", default=False)

P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """``command`` with each error as one sentence and its exit code; tracebacks are shown with ``--debug`` only."""

    @functools.wraps(command)
    def guard(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with like_ctrl_c():
                command(*args, **kwargs)
        except (typer.Exit, typer.Abort, BrokenPipeError):  # typer handles these itself
            raise
        except KeyboardInterrupt:
            message("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:  # noqa: BLE001 - whatever it is, the user gets one sentence
            if DEBUG.get():
                traceback.print_exception(error)
            sentence, code = _explain(error)
            message(sentence)
            raise typer.Exit(code) from None

    return guard


def _explain(error: Exception) -> tuple[str, int]:
    match error:
        case QuantbenchError():
            return told(error), error.exit_code
        case OSError(strerror=str()):
            return (full() if means_full(error) else "") or told(error), USAGE
    text = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {text}; quantbench --debug COMMAND shows where", FAILED
