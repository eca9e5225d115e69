"""The fork server: imports the libraries on its command line, and quantbench, once; then forks a worker per request.

Requests and answers are JSON lines on its pipes.

In: ``{"folder": DIR, "fork": true}``. Out: a greeting, then per request ``{"pid": N}`` and ``{"returncode": N}``; or
``{"refused": WHY}`` where no process can be started. A worker has ended when all that it started has. When its standard input
closes the server kills a worker that is still running, and exits.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from quantbench.core.children import kill_group, python_module
from quantbench.core.descendants import adopt_orphans, die_with_parent, end_below
from quantbench.measuring.preload import forks_may_use_gpus, import_shared


def main() -> None:
    """Serve until standard input closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of imports must not end up between the answers
    preloaded = import_shared(sys.argv[1:])
    if preloaded:
        _import_own()
    _answer(answers, {"preloaded": preloaded, "forks_may_use_gpus": forks_may_use_gpus()})
    adopt_orphans()  # so that what a worker leaves behind, also in a session of its own, ends with it
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while line := sys.stdin.readline():
        request = json.loads(line)
        try:
            pid = _start(Path(request["folder"]), (answers.fileno(), wake_read, wake_write), fork=request["fork"])
        except OSError as error:  # too many processes or open files
            _answer(answers, {"refused": error.strerror})
            continue
        _answer(answers, {"pid": pid})
        _answer(answers, {"returncode": _wait(pid, wake_read)})
    os._exit(0)  # a normal exit would take more than a second to tear down torch and transformers


def _import_own() -> None:
    """Import once what every forked worker needs of quantbench, which saves each of them 0.2 s.

    Plug-ins are left to the workers: they may start threads or a device, which do not survive a fork.
    """
    from quantbench.core.wire import converter
    from quantbench.methods import METHODS
    from quantbench.metrics import METRICS
    from quantbench.runtimes import RUNTIMES

    importlib.import_module("quantbench.measuring.worker")
    converter()
    for registry in (METHODS, METRICS, RUNTIMES):
        registry.import_own()


def _answer(stream: Any, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def _start(folder: Path, own: tuple[int, ...], *, fork: bool) -> int:
    """Fork a worker that closes ``own``, the server's handles: else the server's pipes would stay open when it ends."""
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        die_with_parent()  # also where the server is killed
        os.write(ready_write, b"1")
        for handle in (*own, ready_read, ready_write):
            os.close(handle)
        _become_worker(folder, fork=fork)
    os.close(ready_write)
    os.read(ready_read, 1)  # the worker now leads its own process group
    os.close(ready_read)
    return pid


def _become_worker(folder: Path, *, fork: bool) -> NoReturn:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for name, number in (("stdout.log", 1), ("stderr.log", 2)):
            handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(handle, number)
            os.close(handle)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        if not fork:
            from quantbench.measuring.worker import WITHOUT_TORCH_FLAG

            kept_out = [] if "torch" in sys.argv else [WITHOUT_TORCH_FLAG]
            os.execv(sys.executable, python_module("quantbench.measuring.worker", str(folder), *kept_out))  # noqa: S606 - no shell
        from quantbench.measuring.worker import run_job, sacrifice_first

        sacrifice_first()
        code = run_job(folder)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - this process must end here, whatever happens
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(pid: int, wake: int) -> int:
    """The worker's exit code, or minus the number of the signal that ended it; kills it when the parent goes away.

    All that it has started has ended by then.
    """
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            _end_rest(pid)
            return os.waitstatus_to_exitcode(status)
        ready, _, _ = select.select([wake, sys.stdin], [], [])
        if wake in ready:
            os.read(wake, 4096)
        elif sys.stdin in ready:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            _end_rest(pid)
            os._exit(0)


def _end_rest(pid: int) -> None:
    """End what a worker left behind, wherever the kernel gives no orphans to this process at least its group."""
    end_below()
    kill_group(pid)


if __name__ == "__main__":
    main()
