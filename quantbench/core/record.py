"""What is stored: one record per planned scenario, made of typed columns with units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from quantbench.core.scenario import Scenario, Variant
from quantbench.core.units import format_bytes, format_seconds, short, significant, times, with_error, with_interval

SCHEMA_VERSION = 3
"""1: scenarios, samples, outputs, runs; 2: predicted_weight_bytes, tokens of samples; 3: batch, figures of GPUs.

Columns are only ever added."""


class Status(StrEnum):
    """How a planned scenario ended."""

    OK = "ok"
    SKIPPED = "skipped"
    OOM = "oom"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    ERROR = "error"

    @property
    def failed(self) -> bool:
        """Whether the scenario counts as a failure; a skip does not."""
        return self not in (Status.OK, Status.SKIPPED)


@dataclass(frozen=True, slots=True)
class Missing:
    """A value that was not measured, and why."""

    reason: str


Value = float | int | str | bool | Missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How a comparison of runs judges a figure.

    A change counts above ``least`` (relative) and above ``floor`` (in its unit); ``slicing`` is the column with the row's own
    floor. For a speed, ``ratio`` is the column with its ratio to the anchor: the decision rule judges both, under ``name``.
    """

    least: float = 0.0
    floor: float = 0.0
    slicing: str = ""
    ratio: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """One column. Schema, headings, report, comparison and the page of columns all follow from this definition.

    For a metric, ``formula`` says how it is computed from the trace and ``source`` where that definition comes from.

    ``title`` is its heading. ``show`` is how its figures are written: a format specification such as ``.1%``, ``short`` (two
    digits) or ``times`` (a ratio); if empty, by the unit. ``spread``: its interval (columns ``NAME_low`` and ``NAME_high``) or
    its standard error (``NAME_se``) is shown beside it. ``shown``: in the report's table of all rows, or also in a run's
    overview, ordered by ``place``. ``timed``: it rests on timed rounds, so other work disturbs it. ``gate``: how comparisons
    judge it by default.
    """

    name: str
    unit: str
    better: Literal["lower", "higher"] | None = None
    kind: Literal["float", "int", "string", "bool", "time", "ids", "floats"] = "float"
    doc: str = ""
    formula: str = ""
    source: str = ""
    title: str = ""
    show: str = ""
    spread: Literal["", "interval", "error"] = ""
    shown: Literal["", "report", "overview"] = ""
    place: int = 100
    timed: bool = False
    gate: Gate | None = None

    @property
    def heading(self) -> str:
        """The heading above its figures."""
        title = self.title or self.name
        return title.replace(",", " ± s.e.,", 1) if self.spread == "error" else title

    def write(self, value: float) -> str:
        """One of its figures, formatted for people."""
        if self.show in _WRITERS or not self.show:
            return _WRITERS.get(self.show or self.unit, significant)(value)
        return format(value, self.show)

    def write_with_spread(self, value: float, number: Callable[[str], float | None]) -> str:
        """The same with its interval or standard error, which ``number`` looks up by column name."""
        if self.spread == "error":
            return with_error(value, number(f"{self.name}_se"))
        if self.spread == "interval":
            return with_interval(value, number(f"{self.name}_low"), number(f"{self.name}_high"), show=self.write)
        return self.write(value)


_WRITERS: Mapping[str, Callable[[float], str]] = {
    "bytes": format_bytes, "s": format_seconds, "short": short, "times": times,
}  # fmt: skip
"""Formatters by unit and by the name in ``show``."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One raw number: ``index`` counts inside its round; for gaps it is prompt x (output length - 1) + position.

    ``tokens`` counts those of the whole answer (e2e), or of its first event (prefill): a server may send several at once.
    """

    phase: str
    round: int
    index: int
    value_s: float
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Greedy answers of the reference and the variant to one prompt. Texts are model output: untrusted.

    Without token ids (a server gives text only) everything counted in tokens is None, and ``exact_match`` compares the texts.
    The fields from ``scored_tokens`` on come from scoring the reference's continuation, and are None if it was not scored:
    ``kld`` is in nats, position by position. A mean that is not finite is None as well.
    """

    index: int
    prompt: str
    prompt_tokens: tuple[int, ...]
    reference_tokens: tuple[int, ...]
    variant_tokens: tuple[int, ...] | None
    reference_text: str
    variant_text: str
    exact_match: bool
    first_divergence: int | None
    token_match: float | None
    chrf: float
    scored_tokens: int | None = None
    kld: tuple[float, ...] | None = None
    kld_mean: float | None = None
    top1_agreement: float | None = None
    nll_mean: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row of ``scenarios`` with the rows that belong to it. ``values`` holds a Missing where nothing was measured.

    ``predicted_weight_bytes`` was predicted from shapes before anything was loaded; ``attempts`` is how often the scenario was
    measured: more than once if other work disturbed it. ``variant`` is what an artifact's files hold; None stands for what the
    scenario says.
    """

    scenario: Scenario
    scenario_key: str
    status: Status
    reason: str = ""
    traceback: str = ""
    repeat: int = 0
    attempts: int = 1
    predicted_weight_bytes: int | Missing = Missing("nothing was planned")
    values: Mapping[str, Value] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    variant: Variant | None = None
    samples: tuple[Sample, ...] = ()
    outputs: tuple[Output, ...] = ()
