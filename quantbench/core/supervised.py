"""A program that must not outlive this process, nor leave anything behind: between the two stands a supervisor.

``python -m quantbench.core.supervised COMMAND...`` is that supervisor. It ends the program and everything that the program has
started as soon as its standard input closes, which also happens when the process that holds the other end is killed.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from quantbench.core.children import python_module, signal_name

_PR_SET_CHILD_SUBREAPER = 36
_GRACE_S = 10.0
"""How long a program may take to end by itself: vLLM removes its shared memory then."""

_TRIES = 3
_SIGNALLED = 128
"""The supervisor ends with this much more than the signal that killed the program, as a shell does."""


@contextmanager
def supervised(command: Sequence[str], *, env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``command`` under a supervisor, which is yielded, with all that it prints in ``log``; end its whole tree at last."""
    with log.open("wb") as stream:
        supervisor = subprocess.Popen(
            python_module(__name__, *command),
            stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT, env=dict(env), start_new_session=True,
        )  # fmt: skip
    try:
        yield supervisor
    finally:
        assert supervisor.stdin is not None
        supervisor.stdin.close()
        try:
            supervisor.wait(2 * _GRACE_S)
        except subprocess.TimeoutExpired:
            _kill_below(supervisor.pid)
            supervisor.kill()
            supervisor.wait()


def below(supervisor: int) -> list[psutil.Process]:
    """The program under the supervisor with that process id, and all that it has started."""
    try:
        return psutil.Process(supervisor).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def how_it_ended(returncode: int) -> str:
    """How the program ended, in words, by the return code of its supervisor."""
    if returncode < 0:
        return signal_name(-returncode)
    return signal_name(returncode - _SIGNALLED) if returncode > _SIGNALLED else f"exit code {returncode}"


def _kill_below(supervisor: int) -> None:
    """Kill all that is left; more than once, as one of them may have been starting another."""
    for _ in range(_TRIES):
        left = below(supervisor)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1.0)


def _end_with_parent(program: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1):
        pass
    program.terminate()
    with suppress(subprocess.TimeoutExpired):
        program.wait(_GRACE_S)
    _kill_below(os.getpid())
    os._exit(0)


def main() -> None:
    """Run the command, and end as it ends."""
    with suppress(AttributeError):  # prctl exists on Linux only
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what the program leaves behind becomes a child of this process
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_parent, args=(program,), daemon=True).start()
    returncode = program.wait()
    _kill_below(os.getpid())
    os._exit(returncode if returncode >= 0 else _SIGNALLED - returncode)


if __name__ == "__main__":
    main()
