"""quantbench tells what each quantization of your model costs and buys on your hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantbench.store import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """``quantbench.load``, imported on first use so that ``import quantbench`` stays light."""
    if name in __all__:
        from quantbench import store

        return getattr(store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
