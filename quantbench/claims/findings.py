"""What the probes and timings of one method found: a word, and the details behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quantbench.advice.words import words
from quantbench.core.units import format_seconds, times
from quantbench.results.rows import Row
from quantbench.tables.fields import BETWEEN_PROCESSES
from quantbench.tables.lines import Line

_USUAL_BITS = 4
_LONGEST = 48
"""Characters of a reason, at most, that a cell shows; a longer one becomes a footnote."""

_ON_LOAD = "On-load conversion"
_PREQUANTIZED = "Pre-quantized"
_CONVERSIONS: Mapping[str, str] = {"on load": _ON_LOAD, "pre-quantized": _PREQUANTIZED}


@dataclass(frozen=True, slots=True)
class ProbeFinding:
    """What was found: a word, a detail shown in brackets, and a reason that becomes a footnote if it is long."""

    word: str
    detail: str = ""
    reason: str = ""

    @property
    def text(self) -> str:
        """The cell."""
        detail = self.detail or (self.reason if len(self.reason) <= _LONGEST else "see note")
        return f"{self.word} ({detail})" if detail else self.word

    @property
    def note(self) -> str:
        """The footnote; empty where the cell says everything."""
        return self.reason if len(self.reason) > _LONGEST else ""


Find = Callable[[Line], ProbeFinding]


def representative(rows: list[Row], preferred: str) -> Row:
    """The row that stands for a method: ``preferred``, else one that worked, of 4 bits if there is one, else of the fewest."""

    def order(row: Row) -> tuple[bool, bool, bool, float, str]:
        bits = row.number("bits") or 0
        return row.variant != preferred, not row.ok, bits != _USUAL_BITS, bits, row.variant

    return min(rows, key=order)


def truth(line: Line, name: str) -> bool | None:
    """A flag of the line's row; None where it is null or there is no row."""
    value = line.row.values.get(name) if line.row else None
    return None if value is None else bool(value)


def absent(line: Line) -> ProbeFinding | None:
    """What every cell of a line shows that was not measured; None for a measured one."""
    if line.row is None:
        return ProbeFinding("not run")
    return None if line.row.ok else ProbeFinding("not measured", detail=line.status)


def _probed(column: str, probe: str) -> Find:
    """Yes, no, or not tried, with the reason."""

    def find(line: Line) -> ProbeFinding:
        found = truth(line, column)
        if found is None:
            why = line.row.null_reason(column) if line.row else ""
            return ProbeFinding("not tried", reason=why or "no reason kept")
        return ProbeFinding("Yes") if found else ProbeFinding("No", reason=_note(line, probe))

    return find


def _note(line: Line, probe: str) -> str:
    try:
        notes = json.loads(line.row.text("capability_notes") if line.row else "") or {}
    except ValueError:
        return ""
    return str(notes.get(probe, "")) if isinstance(notes, dict) else ""


def _speed(line: Line) -> ProbeFinding:
    """When the method quantizes, and how long quantizing and loading take."""
    word = _CONVERSIONS.get(line.row.text("conversion") if line.row else "")
    load_s, quantize_s = line.number("load_s"), line.number("quantize_s")
    if word is None:
        return ProbeFinding("not loaded here", reason=line.row.null_reason("conversion") if line.row else "")
    load = "load time unknown" if load_s is None else f"load {format_seconds(load_s)}"
    if word == _ON_LOAD:
        return ProbeFinding(word, detail=load if quantize_s is None else f"prepared in {format_seconds(quantize_s)}, {load}")
    made = "not quantized here" if quantize_s is None else f"quantize {format_seconds(quantize_s)}"
    return ProbeFinding(word, detail=f"{made}, {load}")


def _inference_speed(line: Line) -> ProbeFinding:
    """The word for the speed over the reference's, with the ratio."""
    ratio = line.speed_ratio
    if ratio is None:
        return ProbeFinding("not measured", reason=line.row.null_reason("decode_tps") if line.row else "")
    mark = "" if line.alternated else BETWEEN_PROCESSES
    device = (line.row.text("device") if line.row else "") or "the server's machine"
    detail = f"{times(ratio)}{mark} x {line.group.reference} on {device}"
    return ProbeFinding(words().inference_speed.word(ratio), detail=detail)


def _finetuning(line: Line) -> ProbeFinding:
    """Whether LoRA steps work, with the losses."""
    finding = _probed("finetunes", "finetune")(line)
    first, last = line.number("finetune_loss_first"), line.number("finetune_loss_last")
    if finding.word == "Yes" and first is not None and last is not None:
        return ProbeFinding("Yes", detail=f"LoRA: loss {first:.2f} to {last:.2f}")
    return finding


def kernel(line: Line) -> ProbeFinding:
    """The kernel class found in use."""
    return ProbeFinding((line.row.text("kernel") if line.row else "") or "not named")


FINDINGS: Mapping[str, Find] = {
    "speed": _speed,
    "cpu_support": _probed("runs_on_cpu", "cpu"),
    "cuda_support": _probed("runs_on_cuda", "cuda"),
    "inference_speed": _inference_speed,
    "finetuning": _finetuning,
    "saves_and_reloads": _probed("saves_and_reloads", "save_reload"),
}
"""By the key of the column that each fills."""
