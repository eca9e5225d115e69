"""The canary: a 5.8 M-parameter Llama with real, trained weights. An instrument check, not a stand-in for a real model."""

from __future__ import annotations

from pathlib import Path

from quantbench.models import BuiltinModel

CANARY = BuiltinModel(
    name="canary",
    about="5.8 M-parameter Llama trained on the Python documentation; an instrument check",
    folder=lambda: Path(__file__).parent,
    instrument_check=True,
)
