"""Which job may start on which machine now. A machine times one job at a time; jobs that time nothing share it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quantbench.core.scenario import Conditions


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a job takes of a machine; one that is to be ``alone`` takes all of it."""

    cpus: int
    gpus: int
    alone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine, and all that it has."""

    name: str
    cpus: int
    gpus: int


def need_of(conditions: Conditions, *, timed: bool) -> Need:
    """What a job under these conditions takes. One that uses every core of its machine is alone there, timed or not."""
    gpus = int(conditions.device.startswith("cuda"))
    return Need(cpus=conditions.threads or 1, gpus=gpus, alone=timed or not (gpus or conditions.threads))


def placed(
    waiting: Sequence[Need], nodes: Sequence[Node], running: Mapping[str, Sequence[Need]]
) -> Sequence[tuple[int, Node]]:
    """The jobs that may start now, by their index among the ``waiting``, each with its machine: first come, first served.

    ``running`` has what runs already, by the name of the machine. What needs no GPU goes where there are fewest.
    """
    taken = {node.name: list(running.get(node.name, ())) for node in nodes}
    starts: list[tuple[int, Node]] = []
    hopeless: set[Need] = set()
    for index, need in enumerate(waiting):
        if need in hopeless:
            continue
        free = [node for node in nodes if fits(need, node, taken[node.name])]
        if not free:
            hopeless.add(need)  # nor will another like it: there is only less room from here on
            continue
        node = min(free, key=lambda each: (0 if need.gpus else each.gpus, len(taken[each.name])))
        taken[node.name].append(need)
        starts.append((index, node))
    return starts


def fits(need: Need, node: Node, there: Iterable[Need] = ()) -> bool:
    """Whether a machine can take a job beside those that are ``there``."""
    others = list(there)
    if others and (need.alone or any(each.alone for each in others)):
        return False
    return (
        need.cpus + sum(each.cpus for each in others) <= node.cpus
        and need.gpus + sum(each.gpus for each in others) <= node.gpus
    )
