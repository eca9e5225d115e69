"""Rows of ``scenarios`` as plain Python values: nulls are None, grouped by run, model and prompt set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from statistics import median
from typing import TYPE_CHECKING, Any

from quantbench.core.outside import parse_json
from quantbench.core.scenario import Conditions, Reads, at_batch, baseline, reads, short_name
from quantbench.results.store import in_order

if TYPE_CHECKING:
    import pandas as pd

MOST_LAUNCHING = 0.2
"""Where more than this share of a decode step is launching kernels, its speed is that of the launching program."""

REPEATS = "repeats"
"""In a row that stands for several processes: how many were measured (``PLANNED``: how many were planned)."""

PLANNED = "planned_repeats"
FAILED = "failed_repeats"
"""How those that were not measured ended, in words."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row; every null of any kind is None."""

    values: Mapping[str, Any]

    def number(self, name: str) -> int | float | None:
        """A finite figure in the column's unit, or None."""
        value = self.values.get(name)
        if type(value) is float:  # as nearly all are
            return value if math.isfinite(value) else None
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            return None
        return int(value) if isinstance(value, Integral) else float(value)

    def text(self, name: str) -> str:
        """A string; empty where it is null."""
        value = self.values.get(name)
        return "" if value is None else str(value)

    def flag(self, name: str) -> bool:
        """A boolean; null counts as false."""
        return bool(self.values.get(name))

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries by name; empty where none were stored."""
        return self._texts("versions")

    @property
    def facts(self) -> dict[str, str]:
        """What else was found, by name; empty where nothing was stored."""
        return self._texts("facts")

    @property
    def ok(self) -> bool:
        """Whether it was measured."""
        return self.text("status") == "ok"

    @property
    def variant(self) -> str:
        """``method/precision``, or the name of an artifact."""
        return self.text("artifact") or f"{self.text('method')}/{self.text('precision')}"

    @property
    def batch(self) -> int:
        """Sequences answered together; 1 in old files, which do not store it."""
        return int(self.number("batch") or 1)

    @property
    def prompt_set(self) -> str:
        """The prompt set's name as requested, without the batch that the column appends."""
        return self.text("prompts").removesuffix(at_batch("", self.batch))

    @property
    def prompts(self) -> str:
        """The prompt set's name as in an id: the last part of a path, with the batch."""
        return at_batch(short_name(self.prompt_set), self.batch)

    @property
    def key(self) -> tuple[str, bool]:
        """The variant and whether it is the control, unique within a group. ``label`` is for people only."""
        return self.variant, self.flag("control")

    @property
    def suffix(self) -> str:
        """What distinguishes it from other rows of its variant: control, and how many processes it is the median of."""
        repeats, planned = self.number(REPEATS), self.number(PLANNED)
        some = f"{repeats} of {planned}" if repeats != planned else f"{repeats}"
        return (" (control)" if self.flag("control") else "") + (f" (median of {some})" if repeats else "")

    @property
    def label(self) -> str:
        """``method/precision`` with its suffix."""
        return self.variant + self.suffix

    @property
    def alternated(self) -> bool:
        """Whether its timed rounds alternated with those of the baseline in one process."""
        compared = baseline(self.text("reference"), self.text("device"))
        return self.text("anchor") == compared and self.number("decode_ratio") is not None

    def null_reason(self, name: str) -> str:
        """Why a metric of an ok row is null; empty when no reason was stored."""
        return self._texts("null_reasons").get(name, "")

    def _texts(self, name: str) -> dict[str, str]:
        """A column that holds a JSON object of texts."""
        try:
            found = parse_json(self.text(name) or "{}")
        except ValueError:
            return {}
        return {str(key): str(text) for key, text in found.items()} if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one run, model and prompt set: the reference first, its control next, then by method and falling bits.

    The repeats of a variant are one of the ``rows``; ``stored`` are those that were stored.
    """

    rows: tuple[Row, ...]
    stored: tuple[Row, ...] = ()

    def fact(self, name: str) -> str:
        """A text that all rows share, or at least all measured rows."""
        return next((row.text(name) for row in self.rows if row.text(name)), "")

    @property
    def model(self) -> str:
        """The model's name; the last part of a path."""
        return short_name(self.fact("model"))

    @property
    def prompts(self) -> str:
        """The prompt set's name as in an id; all rows share it."""
        return self.rows[0].prompts if self.rows else ""

    @property
    def reads(self) -> Reads:
        """The kind of input that the model was given."""
        return reads(self.fact("prompts"))

    @property
    def reference(self) -> str:
        """The variant that the others are compared with; the default one where there are no rows."""
        return self.fact("reference") if self.rows else Conditions().reference

    @property
    def reference_row(self) -> Row | None:
        """The reference's own row, when it was measured."""
        return self._named(self.reference)

    def over_reference(self, row: Row, name: str) -> float | None:
        """A figure of ``row`` over that of the reference's own row."""
        mine, reference = row.number(name), self.reference_row
        theirs = reference.number(name) if reference else None
        return mine / theirs if mine is not None and theirs else None

    @property
    def baseline(self) -> str:
        """The variant that speeds are compared with: the reference, and on a GPU bf16 instead of fp32."""
        return baseline(self.reference, self.fact("device"))

    def speed_ratio(self, row: Row) -> float | None:
        """Decode throughput of ``row`` over the baseline's, from alternating rounds where there are any.

        None where ``speed_doubt`` says why there can be none.
        """
        if self.speed_doubt(row):
            return None
        if row.alternated:
            return row.number("decode_ratio")
        mine, other = row.number("decode_tps"), self._named(self.baseline)
        theirs = other.number("decode_tps") if other else None
        return mine / theirs if mine is not None and theirs else None

    def speed_doubt(self, row: Row) -> str:
        """Why its speed says nothing about quantization beside the baseline's; empty where it may be compared."""
        base = self._named(self.baseline)
        if machines := _unlike_machines(row, base):
            return machines
        for each in (row, base):
            share = each.number("launch_share") if each else None
            if each and share is not None and share > MOST_LAUNCHING:
                return f"{share:.0%} of a step of {each.variant} is launching kernels, which no quantization makes cheaper"
        if base is None or _alike(row, base, self.fact("device")):
            return ""
        return f"{row.variant} decodes by {_path(row)} and {base.variant} by {_path(base)}"

    def _named(self, variant: str) -> Row | None:
        return next((row for row in self.rows if row.ok and row.variant == variant and not row.flag("control")), None)

    @property
    def instrument_check(self) -> bool:
        """Whether the model serves only to check the instrument."""
        return any(row.flag("instrument_check") for row in self.rows)

    @property
    def hardware(self) -> str:
        """Device, its name, and the threads used."""
        device, threads = self.fact("device"), self.fact("threads")
        name = self.fact("gpus") if device.startswith("cuda") else self.fact("cpu")
        used = f"{threads} threads" if threads and not device.startswith("cuda") else ""
        return ", ".join(part for part in (f"{device}: {name}" if name else device, used) if part)

    def version(self, package: str) -> str:
        """The version of a library that the run used; empty when it was not stored."""
        return next((row.versions for row in self.rows if row.text("versions")), {}).get(package, "")


_OWN_PATH = "the runtime's own path"
_REPLAYED = ("graph", "compiled")
_BETWEEN = ", "
"""Stands between the machines of a row that is the middle of repeats on several."""


def _path(row: Row) -> str:
    return row.text("decode_path") or _OWN_PATH


def _unlike_machines(row: Row, base: Row | None) -> str:
    """What says that two rows are not of one machine, as in a fleet of several kinds; empty where they are."""
    if any(_BETWEEN in each.text("machine") for each in (row, base) if each):
        return f"{row.variant} was measured on several machines that are not alike"
    if base is None or not base.text("machine") or row.text("machine") in ("", base.text("machine")):
        return ""
    return f"{row.variant} was measured on another machine than {base.variant}"


def _alike(row: Row, base: Row, device: str) -> bool:
    """Whether two rows decode alike: by one path, or one by its runtime's own, which launches nothing from Python on a GPU."""
    paths = {_path(row), _path(base)}
    others = paths - {_OWN_PATH}
    if len(paths) == 1 or not others:
        return True
    return len(others) == 1 and (others <= {*_REPLAYED} if device.startswith("cuda") else "compiled" not in others)


def latest_run(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the latest run (see ``in_order``); an empty frame stays empty."""
    runs = in_order(frame)
    return frame[frame["run_id"] == runs[-1]] if runs else frame


def groups(frame: pd.DataFrame) -> list[Group]:
    """The rows of ``frame`` by run, model and prompt set, in order of appearance; the repeats of a variant are one row."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows_of(frame):
        found.setdefault((row.text("run_id"), row.text("model"), row.text("prompts")), []).append(row)
    return [Group(tuple(_middles(rows)), tuple(rows)) for rows in found.values()]


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """The rows of ``frame``, unchanged and in order."""
    names = [str(name) for name in frame]
    columns = [_plain(column) for _, column in frame.items()]
    return [Row(dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


def _plain(column: pd.Series[Any]) -> list[Any]:
    """The values of a column as Python's own."""
    values, missing = column.tolist(), column.isna().to_numpy()
    return [None if gone else value for value, gone in zip(values, missing, strict=True)] if missing.any() else values


def _middles(rows: Sequence[Row]) -> list[Row]:
    """A row for each variant, in their order."""
    repeats: dict[tuple[str, bool], list[Row]] = {}
    for row in rows:
        repeats.setdefault(row.key, []).append(row)
    return sorted(map(_middle, repeats.values()), key=_order)


def _middle(repeats: Sequence[Row]) -> Row:
    """Repeats of one variant as one row: medians over the ok rows; intervals span from the lowest to the highest.

    A figure that any of them lacks is missing, and one disturbed row marks the whole as disturbed.
    """
    measured = [row for row in repeats if row.ok]
    if not measured or len(repeats) == 1:
        return repeats[0]
    figures = {name: [row.number(name) for row in measured] for name in measured[0].values}
    middle: dict[str, float | str | None] = {}
    for name, numbers in figures.items():
        known = [number for number in numbers if number is not None]
        if known:
            take = min if name.endswith("_low") else max if name.endswith("_high") else median
            middle[name] = (take(known) if len(set(known)) > 1 else known[0]) if len(known) == len(measured) else None
    others = [f"{row.text('status')}, {row.text('reason') or 'no reason kept'}" for row in repeats if not row.ok]
    middle["repeat"] = None
    middle["machine"] = _BETWEEN.join(sorted({row.text("machine") for row in measured} - {""})) or None
    if disturbed := next((row for row in measured if row.flag("disturbed")), None):
        middle |= {name: disturbed.values.get(name) for name in ("disturbed", "disturbance")}
    counts = {REPEATS: len(measured), PLANNED: len(repeats), FAILED: "; ".join(dict.fromkeys(others))}
    return Row({**measured[0].values, **middle, **counts})


def _order(row: Row) -> tuple[bool, bool, str, float, str]:
    is_reference = row.variant == row.text("reference")
    return (
        not is_reference, row.flag("control"), row.text("method"), -(row.number("bits") or 0), row.text("precision"),
    )  # fmt: skip
