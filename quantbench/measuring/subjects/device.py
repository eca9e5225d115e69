"""Where the model really is: a library that falls back to the CPU must not make a slow row that looks well."""

from __future__ import annotations

from collections.abc import Mapping

from quantbench.core.errors import ModelError


def check_device(asked: str, facts: Mapping[str, str], name: str) -> None:
    """Raise ModelError unless the opened variant ``name`` lies wholly on the device that was asked for.

    The fact ``device`` says where its weights were found, several places joined by ``+``. A method that does not say is
    believed on the CPU, where nothing can fall back; elsewhere a row would name a device that nobody looked for.
    """
    found = facts.get("device", "")
    if not found and asked != "cpu":
        raise ModelError(
            f"device {asked!r} was asked for and {name} does not say where its weights are; "
            "its method must name that among its facts, as 'device'"
        )
    if any(asked not in (place, place.partition(":")[0]) for place in found.split("+") if place):
        raise ModelError(
            f"device {asked!r} was asked for and weights of {name} are on {found.replace('+', ' and ')}; "
            "make room on the device, or ask for the device where they are"
        )
