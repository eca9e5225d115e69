"""What was measured, in the form that the rules on claims need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantbench.claims.findings import representative
from quantbench.claims.sizes import architecture_of
from quantbench.core import gpus
from quantbench.results.rows import Group
from quantbench.tables.lines import Line


@dataclass(frozen=True, slots=True)
class Evidence:
    """The groups of measured rows; none where nothing was measured."""

    groups: Sequence[Group] = ()

    def lines(self, variant: str) -> list[Line]:
        """The measured rows of a variant: real models before instrument checks, large models before small ones."""
        found = [
            Line(group=group, label=row.label, variant=variant, row=row, claims={})
            for group in self.groups
            for row in group.rows
            if row.ok and row.variant == variant and not row.flag("control")
        ]
        return sorted(found, key=lambda line: (line.group.instrument_check, -(line.number("parameters") or 0)))

    def of_model(self, variant: str, model: str) -> Line | None:
        """The row of a variant of the planned model: one with as many parameters."""
        parameters = architecture_of(model).parameters
        return next((line for line in self.lines(variant) if line.number("parameters") == parameters), None)

    def of_method(self, variant: str) -> Line | None:
        """The row that stands for a method, in the first group that tried it: ``variant`` itself if present."""
        method = variant.partition("/")[0]
        for group in self.groups:
            rows = [row for row in group.rows if row.text("method") == method and not row.flag("control")]
            if group.reads == "prompts" and rows:
                best = representative(rows, variant)
                return Line(group=group, label=method, variant=best.variant, row=best, claims={})
        return None

    def pairs(self, variant: str, than: str) -> list[tuple[Line, Line]]:
        """Rows of two variants, both from the same group."""
        others = {id(line.group): line for line in self.lines(than)}
        return [(line, others[id(line.group)]) for line in self.lines(variant) if id(line.group) in others]


def no_gpu() -> str:
    """Why nothing can be measured on a GPU here; empty where something can."""
    return f"it needs a GPU, and {why}" if (why := gpus.no_gpu()) else ""
