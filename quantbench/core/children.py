"""How quantbench runs one of its own modules, or another program, in a child process that answers one request.

``call`` starts ``python -m MODULE FOLDER``, whose main is ``answer``: FOLDER holds the request and receives the result.
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
"""Children never download: the parent has fetched everything before it starts them."""

_SHOWN = 300
_VMSTAT = Path("/proc/vmstat")
_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt)(:|$)")
_MEMORY = re.compile(r"[\w.]*MemoryError\b")
"""Python's, numpy's and torch's."""


def python_module(module: str, *arguments: str) -> list[str]:
    """The command line that runs ``module`` with this Python.

    ``-P`` keeps the current folder out of the import path, where a user's own ``torch.py`` or ``numpy.py`` would shadow the
    library. PYTHONPATH still applies.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def call(
    module: str, request: object, task: str, *,
    env: Mapping[str, str] | None = None, timeout_s: float | None = None, cwd: Path | None = None,
) -> Any:  # fmt: skip
    """The answer of a quantbench module to ``request``, from its own process; both are JSON. Raises as ``run`` does."""
    with scratch_folder() as folder:
        (folder / _REQUEST).write_text(json.dumps(request))
        run(python_module(module, str(folder)), task, env=env, timeout_s=timeout_s, cwd=cwd)
        return json.loads((folder / _RESULT).read_text())


def answer(reply: Callable[[Any], object]) -> None:
    """The main of a module that is called: ``reply`` to the request in the folder on the command line.

    A QuantbenchError reaches the caller as its own sentence. If the caller dies, so does this process.
    """
    from quantbench.core.descendants import die_with_parent

    die_with_parent()
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
    """Run a command to its end, with ``env`` added to the environment; ``task`` names its work in messages.

    OutOfMemoryError if the kernel killed it for lack of memory, or it said so; ChildError if it failed otherwise, or took more
    than ``timeout_s``. With a timeout it leads its own process group, which is killed as a whole; without one it stays in its
    parent's group, and dies with it.
    """
    killed_before = oom_kills()
    try:
        started = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=cwd,
            env={**os.environ, **_OFFLINE, **(env or {})}, process_group=None if timeout_s is None else 0,
        )  # fmt: skip
    except OSError as error:
        raise ChildError(task, f"could not be started ({error.strerror})") from error
    with started as child:
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
    """Kill the leader of a process group and everything else in the group."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def oom_kills() -> int:
    """How often the kernel has killed a process for lack of memory, on this machine and in this control group."""
    total = cgroups.oom_kills()
    with suppress(OSError):
        for line in _VMSTAT.read_text().splitlines():
            name, _, count = line.partition(" ")
            total += int(count) if name == "oom_kill" else 0
    return total


def signal_name(number: int) -> str:
    """The name, such as ``SIGSEGV``; the number of a signal without a name, such as a real-time one."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_words(said: str) -> str:
    """The last exception that a process printed, with its file and line if it has no message; else the last line.

    Progress bars are dropped, and so is the build folder of a library at the start of a line.
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
