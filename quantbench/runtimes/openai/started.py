"""A server that quantbench starts itself: on a free port of the loopback, with a key of its own, until it is ready."""

from __future__ import annotations

import re
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from quantbench.core.children import oom_kills
from quantbench.core.errors import ModelError, OutOfMemoryError, QuantbenchError
from quantbench.core.scenario import ServerAddress
from quantbench.core.scratch import scratch_folder
from quantbench.core.supervised import how_it_ended, supervised
from quantbench.core.text import one_line

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""On the CPU: a server that sees a GPU may use it, whatever it was told."""

PATIENCE_S = 600.0
"""vLLM compiles before it answers; a whole job has 900 s, unless told otherwise."""

_POLL_S = 0.05
_END_S = 2.0
"""A connection breaks a moment before the process that held it is gone."""

_LAST_LINES = 3
_LINE_WIDTH = 300
_RAISED = re.compile(r"(?:^|\] )([A-Za-z_.]*(?:Error|Exception): .*)")
"""At the start of a line, or behind what a logger puts there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and as whom to serve: on ``port`` of the loopback, only with ``key``, the model by the name ``alias``.

    ``folder`` is for files that the server needs; it lives as long as the server does.
    """

    port: int
    key: str = field(repr=False)
    alias: str
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalServer:
    """A running server: its address, the key it requires, its name with version, and the process id of its supervisor.

    ``scoring`` is the name to use for log-probabilities, if it is a different one.
    """

    address: ServerAddress
    key: str = field(repr=False)
    kernel: str
    pid: int
    scoring: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How to start a server: what messages call it, and its command and environment for a place.

    ``health`` is the path that answers as soon as it is ready. ``kernel`` is its name in rows, to which the version is added
    that the field ``version[1]`` at the path ``version[0]`` tells. ``scoring`` is as in LocalServer.
    """

    name: str
    kernel: str
    command: Callable[[Place], Sequence[str]]
    env: Callable[[Place], Mapping[str, str]]
    health: str = "/health"
    version: tuple[str, str] = ("", "")
    scoring: str = ""


@contextmanager
def started(program: Program, *, patience_s: float = PATIENCE_S) -> Iterator[LocalServer]:
    """Start the program, wait until it is ready, and end it with everything that it has started.

    Raises ModelError if it ends, or is not ready within ``patience_s``, and OutOfMemoryError if the kernel killed it for lack
    of memory. Where it has ended while it was used, a ModelError of that use says so, with the last lines of its log.
    """
    killed_before = oom_kills()
    with scratch_folder() as folder:
        place = Place(port=_free_port(), key=secrets.token_hex(), alias=f"quantbench-{secrets.token_hex(4)}", folder=folder)
        log = folder / "log.txt"
        with supervised(program.command(place), env=program.env(place), log=log) as supervisor:
            version = _version_when_ready(supervisor, program, place, time.monotonic() + patience_s)
            if version is None:
                if supervisor.poll() is not None:
                    raise _ended(f"{program.name} ended as it started", supervisor, log, killed_before)
                raise ModelError(
                    f"{program.name} was not ready within {patience_s:g} s{_last(log)}; free memory or cores"
                )
            address = ServerAddress(url=f"http://127.0.0.1:{place.port}/v1", model=place.alias)
            try:
                yield LocalServer(
                    address=address, key=place.key, kernel=f"{program.kernel} {version}".strip(), pid=supervisor.pid,
                    scoring=program.scoring,
                )  # fmt: skip
            except ModelError as error:
                with suppress(subprocess.TimeoutExpired):
                    supervisor.wait(_END_S)
                if supervisor.returncode is None:
                    raise
                raise _ended(f"{program.name} ended while it was used", supervisor, log, killed_before) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _version_when_ready(supervisor: subprocess.Popen[bytes], program: Program, place: Place, deadline: float) -> str | None:
    """Wait until it is healthy and lists its alias, which no other program on its port would; None if that never happens."""
    import httpx

    root, (path, name) = f"http://127.0.0.1:{place.port}", program.version
    with httpx.Client(base_url=root, headers={"Authorization": f"Bearer {place.key}"}, trust_env=False) as client:
        while time.monotonic() < deadline and supervisor.poll() is None:
            client.timeout = max(_POLL_S, deadline - time.monotonic())
            try:
                if client.get(program.health).status_code == 200 and place.alias in client.get("/v1/models").text:
                    return one_line(str(client.get(path).json()[name])) if path else ""
            except (httpx.TransportError, ValueError, KeyError, TypeError):  # not yet, or another program on that port
                pass
            time.sleep(_POLL_S)
    return None


def _ended(what: str, supervisor: subprocess.Popen[bytes], log: Path, killed_before: int) -> QuantbenchError:
    said = f"{what} ({how_it_ended(supervisor.returncode)}{_last(log)})"
    if oom_kills() > killed_before:
        return OutOfMemoryError(f"{said}, as memory ran out; use a smaller model, precision or context")
    return ModelError(said)


def _last(log: Path) -> str:
    """The first exception that it printed, from which others follow, and its last lines."""
    lines = [line for each in log.read_text(errors="replace").splitlines() if (line := one_line(each).strip())]
    raised = next((found[1] for line in lines if (found := _RAISED.search(line))), "")
    shown = [raised] if raised and not any(raised in line for line in lines[-_LAST_LINES:]) else []
    shown = [line[:_LINE_WIDTH] for line in (*shown, *lines[-_LAST_LINES:])]
    return f"; its last lines were: {' | '.join(shown)}" if shown else ""
