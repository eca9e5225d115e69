"""A program that must not outlive this process, nor leave anything behind: between the two stands a supervisor.

``python -m quantbench.core.supervised COMMAND...`` is that supervisor. It ends the program and everything that the program has
started as soon as its standard input closes, which also happens when the process that holds the other end is killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from quantbench.core.children import python_module, signal_name
from quantbench.core.descendants import adopt_orphans, kill_below

_GRACE_S = 10.0
"""How long a program may take to end by itself: vLLM removes its shared memory then."""

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
            kill_below(supervisor.pid)
            supervisor.kill()
            supervisor.wait()


def how_it_ended(returncode: int) -> str:
    """How the program ended, in words, by the return code of its supervisor."""
    if returncode < 0:
        return signal_name(-returncode)
    return signal_name(returncode - _SIGNALLED) if returncode > _SIGNALLED else f"exit code {returncode}"


def _end_with_parent(program: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1):
        pass
    program.terminate()
    with suppress(subprocess.TimeoutExpired):
        program.wait(_GRACE_S)
    kill_below(os.getpid())
    os._exit(0)


def main() -> None:
    """Run the command, and end as it ends."""
    adopt_orphans()  # what the program leaves behind must not outlive it
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_parent, args=(program,), daemon=True).start()
    returncode = program.wait()
    kill_below(os.getpid())
    os._exit(returncode if returncode >= 0 else _SIGNALLED - returncode)


if __name__ == "__main__":
    main()
