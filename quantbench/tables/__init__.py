"""Tables: a table kind turns rows of ``scenarios`` into Tables, one per run, model and prompt set.

Some kinds need no results: they show what a type library, a plan or a text says. From Python each kind is a function that
returns a DataFrame::

    from quantbench import load, tables
    tables.gguf(tables.latest_run(load("results")))

A new kind is one file in ``kinds`` (or an entry point in the group ``quantbench.tables``) that holds a TableKind.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from quantbench.core.registry import Registry
from quantbench.results.rows import groups, latest_run

if TYPE_CHECKING:
    import pandas as pd

    from quantbench.results.rows import Group
    from quantbench.tables.table import Table

__all__ = ["ALL", "KINDS", "TableKind", "build", "latest_run"]

ALL = "all"
"""The name that stands for every kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableKind:
    """A kind of table. ``place`` orders the kinds when all are shown.

    ``build`` makes its tables from the groups of some rows; None for a kind that reads no rows. ``unmeasured`` makes those it
    shows without such rows; None for a kind that then has nothing to show.
    """

    name: str
    about: str
    place: int
    build: Callable[[Sequence[Group]], list[Table]] | None = None
    unmeasured: Callable[[], list[Table]] | None = None

    def tables(self, groups: Sequence[Group]) -> list[Table]:
        """Its tables of these groups; where they hold no rows for it, those it shows unmeasured."""
        tables = self.build(groups) if self.build else []
        return tables or (self.unmeasured() if self.unmeasured else [])

    def __call__(self, frame: pd.DataFrame | None = None) -> pd.DataFrame:
        """The same tables as one DataFrame of raw values in base units; see ``frames.as_frame``."""
        from quantbench.tables.frames import as_frame

        return as_frame(self.tables(_groups(frame)))


KINDS: Registry[TableKind] = Registry("quantbench.tables.kinds", TableKind, "table", group="quantbench.tables")


def build(name: str, frame: pd.DataFrame | None) -> list[Table]:
    """The tables of the kind called ``name``, or of all kinds; ``frame`` holds rows of ``scenarios``, if there are any.

    A kind for which the run planned no row shows what needs no measuring. UsageError for an unknown kind.
    """
    kinds = sorted(KINDS, key=lambda kind: kind.place) if name == ALL else [KINDS[name]]
    found = _groups(frame)
    return [table for kind in kinds for table in kind.tables(found)]


def _groups(frame: pd.DataFrame | None) -> list[Group]:
    return [] if frame is None else groups(frame)


def __getattr__(name: str) -> TableKind:
    """The kind of that name: ``quantbench.tables.precision(rows)``."""
    # ``from quantbench.tables import fields`` comes here first, even while the kinds are being imported.
    if not name.startswith("_") and name not in _modules() and name in KINDS:
        return KINDS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _modules() -> frozenset[str]:
    """Names of the modules beside this one."""
    return frozenset(info.name for info in pkgutil.iter_modules(__path__))


def __dir__() -> list[str]:
    return sorted({*globals(), *(kind.name for kind in KINDS)})
