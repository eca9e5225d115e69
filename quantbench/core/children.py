"""How quantbench starts itself again: a module of its own, or another program, in a process that answers one request.

``call`` starts ``python -m MODULE FOLDER``, whose main is ``answer``: FOLDER holds the request, and the result is left there.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantbench.core import cgroups
from quantbench.core.errors import ChildError, OutOfMemoryError, QuantbenchError
from quantbench.core.scratch import scratch_folder

_REQUEST, _RESULT = "request.json", "result.json"
_OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""What is to be fetched was fetched before."""

_SHOWN = 300
_VMSTAT = Path("/proc/vmstat")
_PR_SET_PDEATHSIG = 1
_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt)(:|$)")
_MEMORY = re.compile(r"[\w.]*MemoryError\b")
"""Python's, numpy's and torch's."""


def python_module(module: str, *arguments: str) -> list[str]:
    """The command line that runs ``module`` with this Python.

    ``-P`` leaves the current folder out of the import path: a ``torch.py`` or ``numpy.py`` that lies where quantbench was
    started is somebody's file and not the library. PYTHONPATH counts as always.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def call(
    module: str, request: object, task: str, *,
    env: Mapping[str, str] | None = None, timeout_s: float | None = None, cwd: Path | None = None,
) -> Any:  # fmt: skip
    """What a module of quantbench answers to ``request`` in a process of its own; both are JSON. Raises as ``run`` does."""
    with scratch_folder() as folder:
        (folder / _REQUEST).write_text(json.dumps(request))
        run(python_module(module, str(folder)), task, env=env, timeout_s=timeout_s, cwd=cwd)
        return json.loads((folder / _RESULT).read_text())


def answer(reply: Callable[[Any], object]) -> None:
    """The main of a module that is called: ``reply`` to the request in the folder on the command line.

    An error of ours is told in its own words. Whoever does not live to have the answer needs none: this process then ends too.
    """
    import ctypes

    with suppress(OSError, AttributeError):  # Linux has it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    folder = Path(sys.argv[1])
    try:
        result = reply(json.loads((folder / _REQUEST).read_text()))
    except QuantbenchError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(error.exit_code)
    (folder / _RESULT).write_text(json.dumps(result))


def run(
    command: Sequence[str], task: str, *,
    env: Mapping[str, str] | None = None, timeout_s: float | None = None, cwd: Path | None = None,
) -> None:  # fmt: skip
    """Run a command to its end, with ``env`` added to the environment; ``task`` is what messages say that it was to do.

    OutOfMemoryError where the kernel killed it for that, or it said so; ChildError where it ended badly otherwise, or took more
    than ``timeout_s``. What has that long is a process group of its own, all of which is killed then; what may take as long as
    it must stays in the group of its parent, and is killed with it.
    """
    killed_before = oom_kills()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=cwd,
        env={**os.environ, **_OFFLINE, **(env or {})}, process_group=None if timeout_s is None else 0,
    ) as child:  # fmt: skip
        try:
            said = child.communicate(timeout=timeout_s)[1].decode("utf-8", "replace")
        except BaseException as error:
            child.kill() if timeout_s is None else kill_group(child.pid)
            if isinstance(error, subprocess.TimeoutExpired):
                raise ChildError(task, f"took more than {timeout_s:g} s and was stopped") from error
            raise
    if not child.returncode:
        return
    refused = child.returncode == QuantbenchError.exit_code
    reason = (said.strip().splitlines() or [""])[-1] if refused else last_words(said)
    if (child.returncode == -signal.SIGKILL and oom_kills() > killed_before) or _MEMORY.match(reason):
        why = f" ({reason})" if _MEMORY.match(reason) else ""
        raise OutOfMemoryError(f"{task} ran out of memory{why}; use a smaller model or precision")
    raise ChildError(task, f"ended with {_ending(child.returncode)}", reason, refused=refused, code=child.returncode, said=said)


def kill_group(pid: int) -> None:
    """Kill a process that leads a group, and all that it started there."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def oom_kills() -> int:
    """How often the kernel has killed a process for lack of memory, on the machine and in this control group."""
    total = cgroups.oom_kills()
    with suppress(OSError):
        for line in _VMSTAT.read_text().splitlines():
            name, _, count = line.partition(" ")
            total += int(count) if name == "oom_kill" else 0
    return total


def signal_name(number: int) -> str:
    """``SIGSEGV``; a real-time signal and others without a name of their own are numbers."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_words(said: str) -> str:
    """The last exception in what a process printed, with its place if it says nothing; else its last line.

    Progress bars are left out, and in front of a line the folder that a library was built in.
    """
    lines = [line.strip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", said)) if line.strip()]
    ends = [number for number, line in enumerate(lines) if _ERROR.match(line)]
    if not ends:
        return re.sub("^/[^ ]*/", "", lines[-1])[:_SHOWN] if lines else ""
    last = lines[ends[-1]]
    if last.endswith(("Error", "Exception", "Interrupt")):
        places = [line for line in lines[: ends[-1]] if line.startswith('File "')]
        place = re.match(r'File ".*?([^/"]+)", (line \d+)', places[-1]) if places else None
        last += f" in {place[1]}, {place[2]}" if place else ""
    return last[:_SHOWN]


def _ending(returncode: int) -> str:
    return signal_name(-returncode) if returncode < 0 else f"exit code {returncode}"
