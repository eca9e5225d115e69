"""quantbench tells what each quantization of your model costs and buys on your hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantbench import tables
    from quantbench.results.store import load

__all__ = ["load", "tables"]


def __getattr__(name: str) -> Any:
    """``quantbench.load`` and ``quantbench.tables``, imported on first use so that ``import quantbench`` stays light."""
    match name:
        case "load":
            from quantbench.results import store

            return store.load
        case "tables":
            from importlib import import_module

            return import_module("quantbench.tables")
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
