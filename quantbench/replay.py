"""Show a worker's own durations to pytest-benchmark through its documented API: a clock that is told what to say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class ReplayClock:
    """A timer for ``@pytest.mark.benchmark(timer=...)``; each call of ``advance`` moves it by the next sample."""

    __name__ = "worker_clock"  # pytest-benchmark writes a timer's name into its JSON, or its address when it has none

    def __init__(self) -> None:
        """At zero, with nothing to replay."""
        self._now = 0.0
        self._samples: Iterator[float] = iter(())

    def __call__(self) -> float:
        """Seconds since the clock was made."""
        return self._now

    def load(self, samples: Iterable[float]) -> None:
        """Set the durations to replay, in seconds."""
        self._samples = iter(samples)

    def advance(self) -> None:
        """What pytest-benchmark believes it is timing."""
        self._now += next(self._samples, 0.0)
