"""Signals: what a metric brings runs around a pass, looks between rounds, and costs its own figures only where it fails."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.signals import Signal, Watched
from quantbench.measuring import signals
from quantbench.measuring.signals import Watch
from quantbench.metrics import Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let these signals, by the names of their metrics, be all there are."""

    def these(**brought: Signal | None) -> None:
        made = [Metric(name, "", (), lambda *_: {}, signal) for name, signal in brought.items()]
        monkeypatch.setattr(signals, "METRICS", made)

    return these


def _steps(log: list[str], name: str) -> Signal:
    @contextmanager
    def signal(during: Watched) -> Iterator[None]:
        log.append(f"{name} begins beside {during.name} on {during.device}")
        during.after_round(lambda: log.append(f"{name} looks"))
        during.afterwards(lambda: during.tell({"after": len(log)}))
        yield
        log.append(f"{name} ends")

    return signal


def test_signals_watch_a_pass_and_look_after_each_round_and_what_takes_time_comes_last(metrics: Callable[..., None]) -> None:
    log: list[str] = []
    metrics(one=_steps(log, "one"), none=None, two=_steps(log, "two"))
    with Watch(Watched(name="latency", device="cpu")) as watch:
        watch.look()
        assert watch.signals == {}
    assert log == [
        "one begins beside latency on cpu", "two begins beside latency on cpu",
        "one looks", "two looks", "two ends", "one ends",
    ]  # fmt: skip
    assert watch.signals == {"one": {"after": 6}, "two": {"after": 6}}


@pytest.mark.parametrize("where", ["before", "look", "after", "later"])
def test_a_signal_that_fails_costs_its_own_figures_only(where: str, metrics: Callable[..., None]) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("by nothing")

    @contextmanager
    def broken(during: Watched) -> Iterator[None]:
        if where == "before":
            fail()
        during.after_round(fail if where == "look" else lambda: None)
        during.afterwards(fail if where == "later" else lambda: None)
        yield
        if where == "after":
            fail()

    @contextmanager
    def whole(during: Watched) -> Iterator[None]:
        yield
        during.tell({"figure": 1})

    metrics(broken=broken, whole=whole)
    with Watch(Watched(name="latency")) as watch:
        watch.look()
        watch.look()
    assert watch.signals == {"broken": "its signal failed: ZeroDivisionError: by nothing", "whole": {"figure": 1}}


def test_a_pass_that_fails_is_not_worked_on_afterwards(metrics: Callable[..., None]) -> None:
    log: list[str] = []
    metrics(one=_steps(log, "one"))
    with pytest.raises(MemoryError), Watch(Watched(name="latency")) as watch:
        raise MemoryError
    assert log[-1] == "one ends"
    assert watch.signals == {}
