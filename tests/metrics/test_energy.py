"""The energy pass on made-up counters: what is summed, what wraps around, when it ends, and why there may be none."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.signals import Watched
from quantbench.metrics import energy
from quantbench.metrics.energy import Energy, Nvml, Rapl, count_energy, find_counter, open_rapl

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from conftest import FakeNvml

RANGE_UJ = 262_143_328_850
"""What one server's packages count to before they start again."""


@dataclass
class Clock:
    """Time that passes only when something is done."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@dataclass
class FakeModel:
    """Takes ``token_s`` a token; the device works on for ``late_s`` until it is synchronized."""

    clock: Clock
    token_s: float = 0.25
    late_s: float = 0.0
    asked: list[tuple[tuple[int, ...], int]] = field(default_factory=list)
    closed: int = 0

    def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        self.asked.append((tuple(prompt), limit))
        try:
            for position in range(limit):
                self.clock.now += self.token_s
                yield position
        finally:
            self.closed += 1

    def synchronize(self) -> None:
        self.clock.now += self.late_s


@dataclass
class FakeCounter:
    """A device of ``watts``, whose counter stood at some figure before."""

    clock: Clock
    watts: float
    source: str = "fake"

    def joules(self) -> float:
        return 1e6 + self.watts * self.clock.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The pass's clock."""
    made = Clock()
    monkeypatch.setattr("quantbench.metrics.energy.time", made)
    return made


def _watched(model: FakeModel, prompts: Sequence[Sequence[int]], context: int, device: str = "cpu") -> Watched:
    """A pass in which the model answers these prompts in turn, as long as the context allows."""

    def answers() -> Iterator[Iterator[int]]:
        for prompt in cycle(prompts):
            yield (1 for _ in model.generate(prompt, context - len(prompt)))

    return Watched(name="latency", device=device, answers=answers, synchronize=model.synchronize)


def _told(during: Watched) -> Any:
    """What the signal tells of a pass."""
    with energy.watch_energy(during):
        pass
    for work in during.later:
        work()
    return during.found


def _domain(root: Path, folder: str, name: str, energy_uj: int = 0) -> Path:
    made = root / folder
    made.mkdir(parents=True)
    (made / "name").write_text(f"{name}\n")
    (made / "energy_uj").write_text(f"{energy_uj}\n")
    (made / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return made


def test_energy_is_counted_over_at_least_five_seconds_of_answers(clock: Clock) -> None:
    model = FakeModel(clock, token_s=0.25)
    counted = count_energy(_watched(model, ((1, 2, 3), (4, 5)), 10), FakeCounter(clock, watts=60))
    # 7 and 8 tokens to the ends of the context, then the first prompt again until 20 tokens took 5 s
    assert model.asked == [((1, 2, 3), 7), ((4, 5), 8), ((1, 2, 3), 7)]
    assert counted == Energy(joules=pytest.approx(300), tokens=20, window_s=5.0, source="fake")


def test_what_the_device_still_does_belongs_to_the_window(clock: Clock) -> None:
    counted = count_energy(_watched(FakeModel(clock, late_s=0.5), ((1,),), 100), FakeCounter(clock, watts=10))
    assert counted.window_s == pytest.approx(5.5)
    assert counted.joules == pytest.approx(55)


@pytest.mark.parametrize(("spare_s", "window_s"), [(60.0, 5.0), (3.0, 3.0), (2.0, 2.0)])
def test_the_window_is_no_longer_than_there_is_time_to_spare(
    spare_s: float, window_s: float, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "find_counter", lambda _: FakeCounter(clock, watts=10))
    during = _watched(FakeModel(clock), ((1,),), 100)
    during.spare_s = lambda: spare_s
    found = _told(during)
    assert (found["window_s"], found["joules"]) == (window_s, pytest.approx(10 * window_s))


@pytest.mark.parametrize(("spare_s", "told"), [(1.9, "here 1.9 s"), (-4.0, "here 0.0 s")])
def test_where_that_is_too_short_for_the_counter_nothing_is_answered(
    spare_s: float, told: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "find_counter", lambda _: FakeCounter(clock, watts=10))
    model = FakeModel(clock)
    during = _watched(model, ((1,),), 100)
    during.spare_s = lambda: spare_s
    assert told in _told(during)
    assert model.asked == []


def test_energy_that_nobody_wants_has_that_reason(clock: Clock) -> None:
    model = FakeModel(clock)
    during = replace(_watched(model, ((1,),), 100), answers=None, no_answers="not asked for")
    assert _told(during) == "not asked for"
    assert model.asked == []


def test_a_slow_model_ends_with_its_token(clock: Clock) -> None:
    counted = count_energy(_watched(FakeModel(clock, token_s=30.0), ((1,),), 100), FakeCounter(clock, watts=10))
    assert (counted.tokens, counted.window_s) == (1, 30.0)


def test_every_package_counts_and_its_parts_do_not(tmp_path: Path) -> None:
    first = _domain(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    second = _domain(tmp_path, "intel-rapl:1", "package-1-die-0")
    core = _domain(tmp_path, "intel-rapl:0:0", "core")
    platform = _domain(tmp_path, "intel-rapl:2", "psys")
    _domain(tmp_path, "intel-rapl-mmio:0", "package-0")  # the same package once more, through another door
    counter = open_rapl(tmp_path)
    assert isinstance(counter, Rapl)
    assert counter.joules() == 0
    (first / "energy_uj").write_text("7500000")
    (second / "energy_uj").write_text("1000000")
    (core / "energy_uj").write_text("999000000")
    (platform / "energy_uj").write_text("999000000")
    assert counter.joules() == pytest.approx(3.5)


def test_a_counter_that_starts_again_goes_on(tmp_path: Path) -> None:
    domain = _domain(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 1_000_000)
    counter = open_rapl(tmp_path)
    assert isinstance(counter, Rapl)
    (domain / "energy_uj").write_text("2000000")
    assert counter.joules() == pytest.approx(3.0)
    (domain / "energy_uj").write_text("1000000")  # and once more around
    assert counter.joules() == pytest.approx(3.0 + RANGE_UJ / 1e6 - 1)


@pytest.mark.parametrize("names", [(), ("core",), ("psys",), ("dram",)], ids=lambda names: names or "none")
def test_without_a_package_there_is_no_energy(names: tuple[str, ...], tmp_path: Path) -> None:
    for index, name in enumerate(names):
        _domain(tmp_path, f"intel-rapl:{index}", name)
    assert (
        open_rapl(tmp_path)
        == f"the kernel offers no RAPL energy counter for a CPU package here (none under {tmp_path})"
    )
    assert find_counter("cpu", tmp_path / "nowhere") == open_rapl(tmp_path / "nowhere")


def test_a_counter_for_root_only_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = _domain(tmp_path, "intel-rapl:0", "package-0")
    read = Path.read_text

    def refuse(path: Path, *arguments: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path, *arguments)

    monkeypatch.setattr(Path, "read_text", refuse)  # root may read any file, so the mode alone would not refuse a test
    found = open_rapl(tmp_path)
    assert isinstance(found, str)
    assert f"{domain / 'energy_uj'} is not readable" in found


def test_a_counter_that_says_no_number_is_none(tmp_path: Path) -> None:
    (_domain(tmp_path, "intel-rapl:0", "package-0") / "energy_uj").write_text("<none>")
    assert "cannot be read" in str(open_rapl(tmp_path))


@pytest.mark.parametrize(
    ("device", "joules", "source"),
    [
        ("cuda:0", 1000.0, "NVML, GPU board"),
        ("cuda:1", 20.5, "NVML, GPU board"),
        ("cuda:0+cuda:1", 1020.5, "NVML, 2 GPU boards"),
        ("cuda", 1020.5, "NVML, 2 GPU boards"),
    ],
)
def test_the_millijoules_of_the_boards_in_use_are_joules(device: str, joules: float, source: str, nvml: FakeNvml) -> None:
    first, second = nvml.boards.values()
    first.millijoules, second.millijoules = 1_000_000, 20_500
    counter = find_counter(device)
    assert isinstance(counter, Nvml)
    assert counter.joules() == pytest.approx(joules)
    assert counter.source == source
    first.millijoules = second.millijoules = 3_000_000
    assert counter.joules() == pytest.approx(3000 if device in ("cuda:0", "cuda:1") else 6000)


def test_a_board_without_a_counter_says_so(nvml: FakeNvml) -> None:
    nvml.refuses["nvmlDeviceGetTotalEnergyConsumption"] = "Not Supported"
    assert find_counter("cuda") == "NVML gives no energy counter for this GPU: Not Supported"


def test_without_a_driver_nvml_says_so(nvml: FakeNvml) -> None:
    nvml.refuses["nvmlInit"] = "Driver Not Loaded"
    assert find_counter("cuda") == "NVML cannot be opened: Driver Not Loaded"


def test_where_there_is_no_counter_no_time_is_spent(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "find_counter", lambda device: f"none for {device}")
    model = FakeModel(clock)
    assert _told(_watched(model, ((1,),), 10, "cpu")) == "none for cpu"
    assert model.asked == []


def test_a_counter_that_stands_still_gives_no_figure(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = FakeCounter(clock, watts=5.0)
    monkeypatch.setattr(energy, "find_counter", lambda _: counter)
    found = _told(_watched(FakeModel(clock), ((1,),), 10, "cpu"))
    assert found["joules"] == pytest.approx(25)
    counter.watts = 0.0
    assert _told(_watched(FakeModel(clock), ((1,),), 10, "cpu")) == "the energy counter fake did not move in 5 s"


def test_a_counter_that_fails_midway_costs_the_figure_only(clock: Clock, nvml: FakeNvml) -> None:
    def lost() -> int:
        if clock.now:
            nvml.refuses["nvmlDeviceGetTotalEnergyConsumption"] = "Not Supported"
            return nvml.nvmlDeviceGetTotalEnergyConsumption("GPU-aaaa-1")  # type: ignore[no-any-return]
        return 0

    nvml.boards["GPU-aaaa-1"].millijoules = lost
    found = _told(_watched(FakeModel(clock), ((1,),), 10, "cuda"))
    assert "failed while answers were generated: Not Supported" in str(found)
