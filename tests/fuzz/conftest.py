"""Fuzzing: hostile input for every reader and every command, and what must hold whatever it is.

Each example ends well, or with quantbench's own error in one bounded sentence: no other exception, no hang, no unbounded
memory, no file written outside the folders that it was given, no process started, nothing measured.

In the test suite a few seeded examples of each target run. ``tox -e fuzz`` shares ``QUANTBENCH_FUZZ_SECONDS`` (300) among the
targets, with new examples each time, and says how many each has seen.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from quantbench.core import children
from quantbench.core.errors import QuantbenchError
from quantbench.core.text import MOST

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

SECONDS = float(os.environ.get("QUANTBENCH_FUZZ_SECONDS", "0"))
"""For all targets together; 0 is the short form of the test suite."""

HANG_S = 60
MORE_MEMORY = 3 * 2**30
"""Bytes of address space beyond what the process has when a target begins."""

_BATCH = 100
"""Examples that hypothesis draws before the clock is looked at."""

_SENTENCE = 2 * MOST
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.link", "os.symlink", "os.rename")
_COUNTS: dict[str, int] = {}

DEEP, LONG = 20_000, 5_000
ODD = (
    "", "0", "-1", "1", "1.5", "true", "null", "nan", "NaN", "inf", "-Infinity", "1e999", "[]", "{}", '""', '"x"', "9" * LONG,
    '"' + "9" * LONG + '"', "0x" + "f" * LONG, "18446744073709551616", "9223372036854775808", "1" + "0" * 400, "[" * DEEP,
    "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, ".".join("a" * 3000), '"' + "y" * 100_000 + '"', '"\\u0000"',
    '"\\ud800"', '"/dev/zero"', '"~nosuchuser/x"', '"tokens:' + "9" * LONG + '"', '"ten@' + "9" * LONG + '"', '"http://[::1"',
    '"dummy:"', '"\\u202e\\u001b[31m"', "\x00", "\r", "\u2028", "=", ":", ",", "#", "[", "]", "{", "}", '"', "'",
)  # fmt: skip
"""What stands in the place of a token."""

_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|[\w.+-]+|\s+|.', re.DOTALL)


def texts_like(text: str, odd: Sequence[str] = ODD) -> SearchStrategy[str]:
    """``text`` with some of its tokens replaced by odd ones, dropped or repeated."""
    tokens = _TOKEN.findall(text)
    change = st.tuples(st.integers(0, len(tokens) - 1), st.sampled_from(odd), st.integers(0, 3))

    def changed(changes: list[tuple[int, str, int]]) -> str:
        found = list(tokens)
        for place, new, how in changes:
            found[place] = {0: "", 1: found[place] * 2, 2: found[place] + new, 3: new}[how]
        return "".join(found)

    return st.lists(change, min_size=1, max_size=4).map(changed)


def bytes_like(content: bytes, within: int = 0) -> SearchStrategy[bytes]:
    """``content`` with some bytes of its first ``within`` (default: all) overwritten, dropped or inserted, or cut short."""
    most = within or len(content)
    one, most_negative = b"\x01" + bytes(7), bytes(7) + b"\x80"
    odd = st.sampled_from([b"\x00", b"\xff", b"\xff" * 8, bytes(8), one, most_negative, b"\x08\0\0\0"])
    change = st.tuples(st.integers(0, most), odd | st.binary(max_size=16), st.integers(0, 3))

    def changed(changes: list[tuple[int, bytes, int]]) -> bytes:
        found = content
        for place, new, how in changes:
            rest = {0: place, 1: place + len(new), 2: place + 1, 3: len(found)}[how]
            found = found[:place] + new + found[rest:]
        return found

    return st.lists(change, min_size=1, max_size=4).map(changed)


def files_like(content: bytes, within: int = 0) -> SearchStrategy[bytes]:
    """A text file like ``content``: its tokens changed, or its bytes."""
    tokens = texts_like(content.decode()).map(lambda text: text.encode("utf-8", "surrogatepass"))
    return tokens | bytes_like(content, within) | st.binary(max_size=64)


class HangError(BaseException):
    """An example takes too long; no reader may catch it."""


@dataclass(kw_only=True)
class Fuzz:
    """One target: ``world`` is the folder that it may write to."""

    name: str
    world: Path
    seconds: float
    said: list[str] = field(default_factory=list)
    """The errors' sentences, so that a test can see that something was refused at all."""

    def __call__(self, examples: SearchStrategy[Any], check: Callable[[Any], object], *, short: int = 25) -> None:
        """Call ``check`` with many examples; each must end well or with a QuantbenchError of one bounded sentence.

        In the short form there are ``short`` of them, the same every time.
        """
        until, fresh = time.monotonic() + self.seconds, random.SystemRandom()
        failed: list[Any] = []

        def one(example: Any) -> None:
            if self.seconds and not failed and time.monotonic() >= until:
                return  # the rest of the last batch
            _COUNTS[self.name] = _COUNTS.get(self.name, 0) + 1
            failed.append(example)
            self.survives(lambda: check(example))
            failed.pop()

        while True:
            profile = settings(
                max_examples=_BATCH if self.seconds else short, derandomize=not self.seconds, database=None, deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.generate, Phase.shrink) if self.seconds else (Phase.generate,),
            )  # fmt: skip
            test = profile(given(examples)(one))
            (seed(fresh.getrandbits(64))(test) if self.seconds else test)()
            if time.monotonic() >= until:
                return

    def survives(self, act: Callable[[], object]) -> None:
        """Run it once, and hold what must hold."""
        with _watched(self.world), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                act()
            except QuantbenchError as error:
                sentence = str(error)
            else:
                return
        self.said.append(sentence)
        assert len(sentence) <= _SENTENCE, f"a message of {len(sentence)} characters"


@pytest.fixture
def fuzz(request: pytest.FixtureRequest, world: Path) -> Iterator[Fuzz]:
    """The target of this test."""
    targets = sum("fuzz" in getattr(item, "fixturenames", ()) for item in request.session.items)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if SECONDS:  # not in the suite, whose other tests share the process
        resource.setrlimit(resource.RLIMIT_AS, (held + MORE_MEMORY, hard))
    before = signal.signal(signal.SIGALRM, _hang)
    try:
        yield Fuzz(name=request.node.name.removeprefix("test_"), world=world, seconds=SECONDS / targets)
    finally:
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is home, working folder, cache and place of temporary files; no process, no network."""
    for name in ("home", "cache", "tmp"):
        (tmp_path / name).mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(children, "subprocess", _NoProcesses)
    monkeypatch.setattr("quantbench.models.hub._client", lambda _name: _NoHub())
    return tmp_path


class _NoProcesses:
    """Stands for subprocess: what is started has failed already."""

    TimeoutExpired, DEVNULL, PIPE = subprocess.TimeoutExpired, subprocess.DEVNULL, subprocess.PIPE

    class Popen:
        """A process that ended with an exception."""

        returncode, pid = 1, 0

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __enter__(self) -> _NoProcesses.Popen:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
            return b"", b"RuntimeError: no process is started here"


class _NoHub:
    """Stands for the hub's client without a network and with an empty cache."""

    def try_to_load_from_cache(self, *_: object, **__: object) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object, **__: object) -> Any:
            raise OSError("no network")

        return fail


def _hang(_number: int, _frame: FrameType | None) -> None:
    raise HangError(f"more than {HANG_S} s")


_may_write: list[Path] = []
"""While an example runs: the folder below which files may be made."""


@contextmanager
def _watched(world: Path) -> Iterator[None]:
    """No longer than HANG_S, and with nothing written outside ``world``."""
    if _may_write:  # an example within an example: it has begun already
        yield
        return
    if SECONDS:
        _look_at_writes()
    _may_write.append(world)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _may_write.clear()


_looking: list[bool] = []


def _look_at_writes() -> None:
    """From now on, in this process: it cannot be undone, and so is not done in the test suite."""
    if not _looking:
        _looking.append(True)
        sys.dont_write_bytecode = True
        sys.addaudithook(_refuse_writes)


def _refuse_writes(event: str, arguments: tuple[Any, ...]) -> None:
    if not _may_write:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
    if writes or event in _CHANGES:
        for place in arguments[: 2 if event in ("os.link", "os.symlink", "os.rename") else 1]:
            path = os.path.realpath(os.fsdecode(place)) if isinstance(place, str | bytes | os.PathLike) else ""
            if path and not path.startswith((str(_may_write[0].resolve()), "/dev/")):
                raise AssertionError(f"{event} of {path}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many examples each target has seen; under pytest-xdist the workers keep that to themselves."""
    if _COUNTS and SECONDS:
        terminalreporter.section("fuzz")
        for name, count in _COUNTS.items():
            terminalreporter.write_line(f"{name}: {count} examples")
        terminalreporter.write_line(json.dumps(_COUNTS))


@pytest.fixture
def texts() -> Callable[..., SearchStrategy[str]]:
    """See ``texts_like``."""
    return texts_like


@pytest.fixture
def contents() -> Callable[..., SearchStrategy[bytes]]:
    """See ``files_like``."""
    return files_like


@pytest.fixture
def binaries() -> Callable[..., SearchStrategy[bytes]]:
    """See ``bytes_like``."""
    return bytes_like
