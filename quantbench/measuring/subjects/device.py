"""Where the model really is: a library that silently falls back to the CPU must not produce a slow row that looks valid."""

from __future__ import annotations

from collections.abc import Mapping

from quantbench.core.errors import ModelError


def check_device(device: str, facts: Mapping[str, str], name: str) -> None:
    """Raise ModelError unless the opened variant ``name`` is entirely on the requested ``device``.

    The fact ``device`` says where its weights were found, several places joined by ``+``. A method that does not say is
    trusted on the CPU, where nothing can fall back; elsewhere a row would name a device that was never checked.
    """
    found = facts.get("device", "")
    if not found and device != "cpu":
        raise ModelError(
            f"device {device!r} was asked for and {name} does not say where its weights are; "
            "its method must report that in its facts, as 'device'"
        )
    if any(device not in (place, place.partition(":")[0]) for place in found.split("+") if place):
        raise ModelError(
            f"device {device!r} was asked for and weights of {name} are on {found.replace('+', ' and ')}; "
            "free memory on the device, or request the device where they are"
        )
