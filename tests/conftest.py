"""What several test modules share: a cache of their own, and methods that need no model."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pandas.core.arrays.arrow.extension_types  # registered once a process, and pytester forgets what a test imported
import pytest
from hypothesis import settings

import quantbench
from quantbench.claims import type_facts
from quantbench.core import children
from quantbench.core.cache import cache_root
from quantbench.core.environment import environment
from quantbench.core.errors import UsageError
from quantbench.core.machine import require_device
from quantbench.core.registry import Named, Registry
from quantbench.models import MODELS, meta

WORKER = os.environ.pop("PYTEST_XDIST_WORKER", "")  # what a test starts is no worker
if WORKER:
    os.environ.pop("COLUMNS", None)  # which a worker has, though it has no terminal
if WORKER and hasattr(os, "sched_setaffinity"):
    # A CPU for each worker and all that it starts: threads that wait spin, and slow those of another 10 to 100 times. Work of
    # another worker is then also no work of others on the CPUs that a test may use.
    CPUS = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CPUS[int(WORKER.removeprefix("gw")) % len(CPUS)]})
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50)  # shared machines stall; no database
settings.load_profile("repeatable")

_USERS_CACHE = cache_root()
PLUG_INS = ("stub_method", "odd_method")
ONE_AFTER_ANOTHER = """
import contextlib, gc, io, json, os, sys
import pytest
ends = {}
for name, arguments in json.load(sys.stdin).items():
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = pytest.main(arguments)
    ends[name] = int(code), out.getvalue()
    here = [each for each, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(os.getcwd())]
    for each in here:
        del sys.modules[each]
    gc.freeze()  # else each collection before timed rounds goes through all that was imported
json.dump(ends, sys.stdout)
"""
ENTRY_POINTS = "[quantbench.methods]\nstub = stub_method\nodd = odd_method\n[quantbench.metrics]\nstub = stub_method\n"


@pytest.fixture(scope="session")
def one_after_another() -> str:
    """A program that runs pytest several times: their arguments, by name, go in as JSON; exit codes and texts come out."""
    return ONE_AFTER_ANOTHER


@pytest.fixture(scope="session")
def stub_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, on the import path, is an installed distribution which publishes the stub and the odd methods."""
    folder = tmp_path_factory.mktemp("stub")
    for name in PLUG_INS:
        shutil.copy(Path(__file__).parent / f"{name}.py", folder)
    (folder / "quantbench").symlink_to(Path(quantbench.__file__).parent)  # children test this one, whichever is installed
    info = folder / "stub_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stub-method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


@pytest.fixture(scope="session")
def stub_cache(stub_path: Path) -> Callable[[Path], Path]:
    """Make the cache of a run in a folder: its own, but for the stubs' references, as one costs seconds of imports."""
    references = stub_path / "references"
    references.mkdir()

    def make(folder: Path) -> Path:
        cache = folder / "cache"
        cache.mkdir()
        (cache / "reference").symlink_to(references)
        return cache

    return make


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the session, so that references and GGUF files are made once, whichever worker asks first."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if WORKER else base) / "shared-cache"


@pytest.fixture(scope="session", autouse=True)
def _types_are_read_once(shared_cache: Path) -> Iterator[None]:
    """What libraries say of their number types takes a child seconds to find: once for the session, whoever asks first."""

    def kept(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with environment({"QUANTBENCH_CACHE": str(shared_cache)}):
                return function(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("recall", "remember"):
            patch.setattr(type_facts, name, kept(getattr(type_facts, name)))
        yield


@pytest.fixture(scope="session")
def users_cache() -> Path:
    """The user's own cache: GGUF files are content-addressed, and the converter is fetched once a machine."""
    return _USERS_CACHE


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """As ``subprocess.run`` for ``[sys.executable, "-m" or "-c", ...]``, with ``env`` and ``cwd``; all output is in ``stdout``.

    What it runs is a fork of one process that has torch and transformers imported, which else takes each process five seconds.
    """
    output = tmp_path_factory.mktemp("warm") / "output"
    server = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).parent / "warm.py")], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **children._OFFLINE},
    )  # fmt: skip
    requests, answers = server.stdin, server.stdout
    assert requests
    assert answers

    def run(
        command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        words = [word for word in command[1:3] if word != "-P"] + list(command[3:])
        asked = {"command": words, "environment": dict(env), "folder": str(cwd or Path.cwd()), "output": str(output)}
        output.write_bytes(b"")
        requests.write(json.dumps(asked) + "\n")
        requests.flush()
        code = int(answers.readline())
        return subprocess.CompletedProcess(command, code, output.read_text(errors="replace"), "")

    with server:
        yield run
        requests.close()


@pytest.fixture
def warm_children(
    warm: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What quantbench asks its own modules is answered by ``warm``; what fails there is asked again as it is elsewhere."""
    usual, python = children.run, children.python_module("")[:-1]

    def run(command: Sequence[str], task: str, **how: Any) -> None:
        env = {**os.environ, **children._OFFLINE, **(how.get("env") or {})}
        if command[: len(python)] != python or warm(command, env=env, cwd=how.get("cwd")).returncode:
            usual(command, task, **how)

    monkeypatch.setattr(children, "run", run)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a child asks transformers of a configuration, in this process, which has imported it already."""
    monkeypatch.setattr(meta, "call_transformers", lambda _module, request, *_: meta.describe_config(request))


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Registry[Any], Named], None]:
    """Add something to a registry for the length of a test, as if it had been found."""
    return lambda registry, found: monkeypatch.setitem(registry._found, found.name, found)


@pytest.fixture
def artifacts(users_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test use the user's own cache."""
    monkeypatch.setenv("QUANTBENCH_CACHE", str(users_cache))


@pytest.fixture
def results(pytester: pytest.Pytester) -> Callable[..., pd.DataFrame]:
    """Read the tables of a run by plain pandas, as an analyst would."""

    def read(table: str = "scenarios", folder: str = "results") -> pd.DataFrame:
        return pd.read_parquet(pytester.path / folder / table)

    return read


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``gpu`` where there is no GPU, or no torch that could use it; say which."""
    if item.get_closest_marker("gpu") and (reason := _no_gpu()):
        pytest.skip(reason)


@cache
def _no_gpu() -> str:
    try:
        require_device("cuda", torch=True)
    except UsageError as error:
        return f"needs a GPU: {error}"
    return ""


@pytest.fixture(autouse=True, scope="module")
def _settled() -> None:
    """What was imported so far is no garbage: else the collections before timed rounds go through millions of objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's cache unless it asks for ``artifacts``."""
    monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path / "cache"))


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {%- if message.role == 'assistant' %} A: {{ message.content | trim }}{{ eos_token }}\n"
    "    {%- else %}{{ message.role | upper }}: {{ message.content }}{{ eos_token }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %} A:{% endif %}"
)
"""With the special tokens that the canary has: one in front, and one after each message."""


@pytest.fixture(scope="session")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a canary with CHAT_TEMPLATE, the same always: what is made of it in the user's cache is made once."""
    folder = tmp_path_factory.mktemp("models") / "chatty"
    shutil.copytree(MODELS["canary"].folder(), folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": CHAT_TEMPLATE}))
    return folder


class FakeError(Exception):
    """Stands for pynvml's."""


class FakeNotFoundError(FakeError):
    """What NVML raises where nobody used a board."""

    value = 6


@dataclass(kw_only=True)
class Board:
    """What one board says; a figure that is a callable is called for each answer. ``processes`` are (pid, bytes).

    ``total`` is None where it is not told; ``parts`` (MIG) are boards too.
    """

    name: str = "NVIDIA H100 80GB HBM3"
    total: int | None = 80 * 2**30
    used: int | Callable[[], int] = 0
    processes: list[tuple[int, int | None]] = field(default_factory=list)
    millijoules: int | Callable[[], int] = 0
    sm_mhz: int | Callable[[], int] = 1980
    memory_mhz: int | Callable[[], int] = 2619
    most_sm_mhz: int = 1980
    temperature_c: int | Callable[[], int] = 40
    reasons: int | Callable[[], int] = 0
    capped_ns: dict[int, int] = field(default_factory=dict)
    limit_mw: int = 700_000
    used_by: dict[int, int] = field(default_factory=dict)
    """How busy each process keeps it, in percent."""
    looks: int = 0
    """How often somebody asked what it had given away."""
    parts: dict[str, Board] = field(default_factory=dict)


def _now(figure: int | Callable[[], int]) -> int:
    return figure() if callable(figure) else figure


class FakeNvml:
    """Stands for pynvml: its functions take a board's UUID for the handle. What is in ``refuses`` is not supported."""

    NVMLError = FakeError

    def __init__(self, boards: dict[str, Board]) -> None:
        self.boards = boards
        self.refuses: dict[str, str] = {}
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A function of NVML, if there is one of that name here."""
        answer = getattr(type(self), f"_{name.removeprefix('nvmlDevice').removeprefix('nvml')}", None)
        if answer is None:
            raise AttributeError(f"Function Not Found: {name}")

        def call(*arguments: Any) -> Any:
            self.asked.append(name)
            if name in self.refuses:
                raise FakeError(self.refuses[name])
            return answer(self, *arguments)

        return call

    def _Init(self) -> None:  # noqa: N802 - NVML's names, also below
        pass

    def _SystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.95.05"

    def _GetCount(self) -> int:  # noqa: N802
        return len(self.boards)

    def _GetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return list(self.boards)[index]

    def _GetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in self.boards:
            raise FakeError("Not Found")
        return uuid

    def _GetUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def _GetName(self, uuid: str) -> str:  # noqa: N802
        return self._board(uuid).name

    def _GetMemoryInfo(self, uuid: str) -> SimpleNamespace:  # noqa: N802
        board = self._board(uuid)
        board.looks += 1
        if board.total is None:
            raise FakeError("Not Supported")
        return SimpleNamespace(total=board.total, used=(used := _now(board.used)), free=board.total - used)

    def _board(self, uuid: str) -> Board:
        return self.boards.get(uuid) or next(each.parts[uuid] for each in self.boards.values() if uuid in each.parts)

    def _GetMaxMigDeviceCount(self, uuid: str) -> int:  # noqa: N802
        return 7 if self.boards[uuid].parts else 0

    def _GetMigDeviceHandleByIndex(self, uuid: str, index: int) -> str:  # noqa: N802
        if index >= len(self.boards[uuid].parts):
            raise FakeNotFoundError
        return list(self.boards[uuid].parts)[index]

    def _GetComputeRunningProcesses(self, uuid: str) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=count) for pid, count in self.boards[uuid].processes]

    def _GetProcessUtilization(self, uuid: str, since_us: int) -> list[SimpleNamespace]:  # noqa: N802
        busy = self.boards[uuid].used_by.items()
        if not busy:
            raise FakeNotFoundError
        return [SimpleNamespace(pid=pid, smUtil=percent, timeStamp=since_us + 1) for pid, percent in busy]

    def _GetTotalEnergyConsumption(self, uuid: str) -> int:  # noqa: N802
        return _now(self.boards[uuid].millijoules)

    def _GetClockInfo(self, uuid: str, clock: int) -> int:  # noqa: N802
        return _now({1: self.boards[uuid].sm_mhz, 2: self.boards[uuid].memory_mhz}[clock])

    def _GetMaxClockInfo(self, uuid: str, clock: int) -> int:  # noqa: N802
        return {1: self.boards[uuid].most_sm_mhz}[clock]

    def _GetTemperatureV(self, uuid: str, sensor: int) -> int:  # noqa: N802
        return _now({0: self.boards[uuid].temperature_c}[sensor])

    def _GetTemperature(self, uuid: str, sensor: int) -> int:  # noqa: N802
        return self._GetTemperatureV(uuid, sensor)

    def _GetCurrentClocksEventReasons(self, uuid: str) -> int:  # noqa: N802
        return _now(self.boards[uuid].reasons)

    def _GetCurrentClocksThrottleReasons(self, uuid: str) -> int:  # noqa: N802
        return self._GetCurrentClocksEventReasons(uuid)

    def _GetViolationStatus(self, uuid: str, policy: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(violationTime=self.boards[uuid].capped_ns.get(policy, 0))

    def _GetEnforcedPowerLimit(self, uuid: str) -> int:  # noqa: N802
        return self.boards[uuid].limit_mw


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """A stand-in for the driver's library with two boards, so that what is made of its answers can be checked anywhere."""
    fake = FakeNvml({"GPU-aaaa-1": Board(), "GPU-bbbb-2": Board()})
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]  # whatever an import finds there it takes
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    return fake
