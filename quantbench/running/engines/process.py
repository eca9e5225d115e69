"""The process engine: every job in a fresh process, forked from a server that has torch and transformers imported.

Runtimes that do not need torch have a server without it. Its workers are started anew, not forked, so that their peak memory is
exactly their own.

A forked worker starts in 0.15 s instead of 5 s and decodes as fast as a spawned one. With a GPU a fork is safe only while no
preloaded library has touched CUDA: GPUs are hidden from the imports, and the server asks a forked child whether it may use
them. If not, each job is spawned.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from quantbench.core.allocator import one_allocator
from quantbench.core.children import oom_kills, python_module, signal_name
from quantbench.core.disks import full
from quantbench.core.errors import QuantbenchError
from quantbench.core.job import Failure, Job
from quantbench.core.record import Status
from quantbench.core.waiting import bounded
from quantbench.measuring.preload import SHARED, WITHOUT_TORCH
from quantbench.methods import METHODS
from quantbench.running.engines import Engine, OpenEngine, reported_failure
from quantbench.runtimes import RUNTIMES, says_out_of_memory

_LAST_LINES = 60
_SHOWN = 300
_CLOSING_S = 20.0
"""What a server may take to end: longer than a program that a worker has started may take to clean up."""

_NOT_STARTED = "no process could be started ({}); raise the limits that ulimit -a shows"
_GONE = "the fork server ended unexpectedly; run again, or use --engine inline to see why"
_ENVIRONMENT = {
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # checking for CUDA must not initialize it before the fork
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


class _Server:
    """Talks JSON lines with a fork server over pipes; jobs and results travel as files."""

    def __init__(self, device: str, libraries: Sequence[str]) -> None:
        """Start the server; it imports in the background, and the first job waits for it."""
        environment = {**os.environ, **_ENVIRONMENT, **bounded(os.environ), **one_allocator(os.environ)}
        self._forks = bool(libraries)
        self._device = device
        try:
            self._process = subprocess.Popen(
                python_module("quantbench.running.engines._fork_server", *libraries),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise QuantbenchError(_NOT_STARTED.format(error.strerror)) from error
        self._hello: dict[str, Any] | None = None
        self._received = b""

    @property
    def preloaded(self) -> Mapping[str, float]:
        """Seconds of the server's imports, by package."""
        seconds: dict[str, float] = self._greeting()["preloaded"]
        return seconds

    def run(self, folder: Path, timeout_s: float) -> Failure | None:
        """See OpenEngine. SIGKILL with a rising count of the kernel's OOM kills is ``oom``, any other signal ``crashed``.

        A worker whose output says that memory ran out is ``oom`` too: llama.cpp and bitsandbytes then end the process.
        """
        killed_before = oom_kills()
        self._send({"folder": str(folder), "fork": self._may_fork()})
        started = self._receive(None)
        if "refused" in started:
            raise QuantbenchError(_NOT_STARTED.format(started["refused"]))
        pid = int(started["pid"])
        try:
            answer = self._receive(timeout_s)
        except TimeoutError:
            _kill(pid)
            self._receive(None)
            return Failure(
                status=Status.TIMEOUT, reason=f"no result within {timeout_s:g} s; raise --timeout, or measure less"
            )
        except BaseException:
            _kill(pid)
            with contextlib.suppress(QuantbenchError):  # the server is gone too where a signal went to all processes
                self._receive(None)  # or the next job would get this one's answer
            raise
        return ending(folder, int(answer["returncode"]), oom_kills() > killed_before)

    def close(self) -> None:
        """Stop the server and any worker still running."""
        with contextlib.suppress(OSError, ValueError):
            _pipe(self._process.stdin).close()
        try:
            self._process.wait(_CLOSING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _pipe(self._process.stdout).close()

    def _greeting(self) -> dict[str, Any]:
        if self._hello is None:
            self._hello = self._receive(None)
        return self._hello

    def _may_fork(self) -> bool:
        greeting = self._greeting()
        return self._forks and (greeting["forks_may_use_gpus"] or not self._device.startswith("cuda"))

    def _send(self, message: dict[str, Any]) -> None:
        self._greeting()
        stream = _pipe(self._process.stdin)
        try:
            stream.write(json.dumps(message).encode() + b"\n")
            stream.flush()
        except BrokenPipeError as error:
            raise QuantbenchError(_GONE) from error

    def _receive(self, timeout_s: float | None) -> dict[str, Any]:
        handle = _pipe(self._process.stdout).fileno()
        while b"\n" not in self._received:
            if not select.select([handle], [], [], timeout_s)[0]:
                raise TimeoutError
            chunk = os.read(handle, 1 << 16)
            if not chunk:
                raise QuantbenchError(_GONE)
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


class ProcessRunner:
    """Runs each job in a worker of one of two servers, with torch or without it; each is started when first needed."""

    def __init__(self, device: str) -> None:
        """Nothing is started before the first job."""
        self._device = device
        self._servers: dict[Sequence[str], _Server] = {}

    def preloaded(self, job: Job) -> Mapping[str, float]:
        """See OpenEngine."""
        return self._server(job).preloaded

    def run(self, folder: Path, timeout_s: float) -> Failure | None:
        """See OpenEngine."""
        return self._server(Job.load(folder)).run(folder, timeout_s)

    def close(self) -> None:
        """Stop the servers and any workers still running."""
        for server in self._servers.values():
            server.close()

    def _server(self, job: Job) -> _Server:
        libraries = SHARED if needs_torch(job) else WITHOUT_TORCH
        if libraries not in self._servers:
            self._servers[libraries] = _Server(self._device, libraries)
        return self._servers[libraries]


def needs_torch(job: Job) -> bool:
    """Whether a job's worker needs torch, or may need it.

    Measuring a variant of a method whose runtime works without torch does not need it, nor does anything else that is done
    with such a method to a model that is a GGUF file. Of a checkpoint, preparing and probing may load the original with
    torch, a reference is scored by it, and its own code may import anything.
    """
    from_file = job.model.kind == "gguf" and job.kind != "probe"
    if not (from_file or job.kind == "measure") or job.checkpoint.trust_remote_code or job.variant.method not in METHODS:
        return True
    method = METHODS[job.variant.method]
    return not RUNTIMES[method.runtime].torch_free or "torch" in method.requires


@contextmanager
def open_process(device: str) -> Iterator[OpenEngine]:
    """Fork servers are started when first needed, and stopped at the end."""
    runner = ProcessRunner(device)
    try:
        yield runner
    finally:
        runner.close()


PROCESS = Engine("process", "each variant in a fresh process, forked from a server, with torch where needed", open_process)


def _kill(pid: int) -> None:
    """Kill a worker; its server ends what the worker has started."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def ending(folder: Path, returncode: int, oom_killed: bool) -> Failure | None:
    """What became of the worker whose job is in ``folder``, by how it ended and what it said last; None where all went well."""
    if returncode == 0:
        return None
    if reported := reported_failure(folder):
        return reported
    if returncode == -signal.SIGKILL and oom_killed:
        return Failure(
            status=Status.OOM, reason="the kernel killed the worker: memory ran out; use a smaller model or precision"
        )
    ended = f"was ended by {signal_name(-returncode)}" if returncode < 0 else f"ended with exit code {returncode}"
    said = _said_last(folder / "stderr.log")
    if memory := next(filter(says_out_of_memory, said), ""):
        return Failure(status=Status.OOM, reason=f"the worker {ended}: {memory[:_SHOWN]}; use a smaller model or precision")
    if no_room := full(folder):
        return Failure(status=Status.ERROR, reason=f"the worker {ended}: {no_room}")
    last_words = f"; its last line was: {said[-1][:_SHOWN]}" if said else ""
    return Failure(status=Status.CRASHED, reason=f"the worker {ended}{last_words}")


def _said_last(path: Path) -> list[str]:
    """The last lines that a worker printed: a library that aborts says why, then perhaps prints its stack."""
    return path.read_text(errors="replace").strip().splitlines()[-_LAST_LINES:] if path.is_file() else []
