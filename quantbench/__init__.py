"""quantbench tells what each quantization of your model costs and buys on your hardware."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantbench import tables
    from quantbench.core.errors import QuantbenchError
    from quantbench.results.store import load
    from quantbench.running.measure import measure

__all__ = ["QuantbenchError", "load", "measure", "tables"]

_HOMES = {
    "QuantbenchError": "quantbench.core.errors", "load": "quantbench.results.store", "measure": "quantbench.running.measure",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """The public names, imported on first use so that ``import quantbench`` stays light."""
    if name == "tables":
        return import_module("quantbench.tables")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
