"""The Ray engine: one job is one task of a Ray cluster, on a machine that this driver chooses.

A timed task asks for every CPU of its machine, so that Ray starts nothing beside it, whoever sent it. On a CPU the process
that runs tasks is kept for the next one, with the libraries loaded in its fork server: what is measured is a fresh process
forked from that. A task with a GPU has a process of its own from the start, and so has one whose method brings a runtime
environment. Ray retries nothing: rows tell how jobs ended. A
job is sent once more only where its machine was lost, and then measures only what it had not stored.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from quantbench.core.errors import UsageError
from quantbench.core.install import install_hint
from quantbench.core.job import Failure
from quantbench.core.record import Status
from quantbench.methods import METHODS
from quantbench.running.engines import Engine, OpenFleet
from quantbench.running.engines.process import open_process
from quantbench.running.errand import Errand, Order, Report
from quantbench.running.placing import Node, fits, placed

_TRIES = 3
"""How often a job is sent whose machine was lost each time."""

_PATIENCE_S = 60.0
"""How long to wait for machines while nothing runs; those that were lost may be replaced."""

_ANSWER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """An errand, how often it has been sent before, and where it runs, if it does."""

    errand: Errand
    tries: int = 0
    node: str = ""


class RayFleet:
    """The machines of a Ray cluster; what waits for one waits here, in the driver."""

    def __init__(self, ray: Any) -> None:
        """``ray`` is the module, connected."""
        from quantbench.running.station import carry_out

        self._ray = ray
        self._kept, self._fresh = ray.remote(carry_out), ray.remote(max_calls=1)(carry_out)
        self._waiting: list[_Sent] = []
        self._running: dict[Any, _Sent] = {}
        self._idle_since: float | None = None
        self.notes: list[str] = []

    def send(self, errands: Sequence[Errand]) -> None:
        """See OpenFleet."""
        nodes = self._nodes()
        for errand in errands:
            if not any(fits(errand.need, node) for node in nodes):
                need, largest = errand.need, max(((each.gpus, each.cpus) for each in nodes), default=(0, 0))
                raise UsageError(
                    f"no machine of the Ray cluster has {need.cpus} CPUs and {need.gpus} GPUs (of {len(nodes)}, the largest "
                    f"has {largest[1]} and {largest[0]}); add one that has, or choose --device and --threads otherwise"
                )
        self._waiting += [_Sent(errand=errand) for errand in errands]
        self._start()

    def ended(self, timeout_s: float) -> Sequence[tuple[Errand, Report | Failure]]:
        """See OpenFleet."""
        self._start()
        if not self._running:
            return self._given_up(timeout_s)
        self._idle_since = None
        running = list(self._running)
        self._ray.wait(running, num_returns=1, timeout=timeout_s)
        done, _ = self._ray.wait(running, num_returns=len(running), timeout=0)
        found = [self._result(task) for task in done]
        self._start()
        return [each for each in found if each]

    def close(self) -> None:
        """Call off what runs."""
        for task in self._running:
            self._ray.cancel(task, force=True)

    def _start(self) -> None:
        running: dict[str, list[Any]] = {}
        for sent in self._running.values():
            running.setdefault(sent.node, []).append(sent.errand.need)
        starts = placed([sent.errand.need for sent in self._waiting], self._nodes(), running)
        for index, node in starts:
            sent = replace(self._waiting[index], node=node.name)
            self._running[self._submitted(sent.errand, node)] = sent
        gone = {index for index, _ in starts}
        self._waiting = [sent for index, sent in enumerate(self._waiting) if index not in gone]

    def _submitted(self, errand: Errand, node: Node) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        need, method = errand.need, errand.scenarios[0].variant.method
        own = METHODS[method].runtime_env if method else {}
        task = (self._fresh if need.gpus else self._kept).options(
            num_cpus=node.cpus if need.alone else need.cpus, num_gpus=need.gpus, max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.name, soft=False),
            **({"runtime_env": dict(own)} if own else {}),
        )  # fmt: skip
        return task.remote(errand)

    def _result(self, task: Any) -> tuple[Errand, Report | Failure] | None:
        """What a task that ended came to; None where it is to be sent again, as its machine was lost."""
        sent = self._running.pop(task)
        errors = self._ray.exceptions
        try:
            return sent.errand, self._ray.get(task)
        except errors.OutOfMemoryError as error:
            return sent.errand, Failure(status=Status.OOM, reason=f"Ray ended the job: {_first_line(error)}")
        except errors.RayTaskError as error:
            return sent.errand, Failure(status=Status.ERROR, reason=_first_line(error.cause or error), traceback=str(error))
        except errors.RayError as error:
            lost = self._lost(sent.node, error)
            if lost and sent.tries + 1 < _TRIES:
                label = sent.errand.scenarios[0].variant.label
                self.notes.append(f"a machine of the Ray cluster was lost, and the job of {label} sent to another")
                self._waiting.insert(0, replace(sent, tries=sent.tries + 1, node=""))
                return None
            why = f"its machine was lost {_TRIES} times" if lost else "Ray could not carry the job out"
            return sent.errand, Failure(status=Status.CRASHED, reason=f"{why}: {_first_line(error)}")

    def _lost(self, name: str, error: Exception) -> bool:
        """Whether a task ended because its machine did."""
        errors = self._ray.exceptions
        sure = (errors.NodeDiedError, errors.LocalRayletDiedError, errors.ObjectLostError, errors.TaskUnschedulableError)
        if isinstance(error, errors.WorkerCrashedError):
            return all(node.name != name for node in self._nodes())
        return isinstance(error, sure)

    def _given_up(self, timeout_s: float) -> Sequence[tuple[Errand, Report | Failure]]:
        """While nothing runs: nothing yet, then a failure of all that waits."""
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if now - self._idle_since < _PATIENCE_S:
            time.sleep(timeout_s)
            return []
        left, self._waiting = self._waiting, []
        reason = f"for {_PATIENCE_S:g} s the Ray cluster has had no machine for it; resume the run when there is one"
        return [(sent.errand, Failure(status=Status.ERROR, reason=reason)) for sent in left]

    def _nodes(self) -> list[Node]:
        """The machines that are alive; a head that was told to run nothing says that it has no CPU."""
        alive = ((node["NodeID"], node["Resources"]) for node in self._ray.nodes() if node["Alive"])
        nodes = [Node(name=name, cpus=int(has.get("CPU", 0)), gpus=int(has.get("GPU", 0))) for name, has in alive]
        return [node for node in nodes if node.cpus]


@contextmanager
def open_ray(order: Order) -> Iterator[OpenFleet]:
    """Join the cluster that ``--ray-address`` names, that Ray finds, or else one started here; stopped at the end."""
    try:
        import ray
    except ImportError:
        raise UsageError(f"--engine ray needs Ray, which is not installed; {install_hint('ray')}") from None
    address = order.plan.ray_address
    joined = not ray.is_initialized()
    if joined:
        _join(ray, address)
    fleet = RayFleet(ray)
    try:
        yield fleet
    finally:
        fleet.close()
        if joined:
            ray.shutdown()


def _join(ray: Any, address: str | None) -> None:
    _require_answer(address or os.environ.get("RAY_ADDRESS") or "")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ImportError, RuntimeError, ValueError, OSError) as error:
        where = f"Ray at {address}" if address else "Ray"
        raise UsageError(
            f"{where} cannot be joined ({_first_line(error)}); start it with 'ray start --head', or have one started here with "
            "--ray-address local"
        ) from None


def _require_answer(address: str) -> None:
    """Raise UsageError where an address HOST:PORT does not answer: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, ValueError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"no Ray answers at {address} ({why}); start it there with 'ray start --head', or give the address that it said"
        ) from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


RAY = Engine("ray", "each variant on a machine of a Ray cluster, which times one at a time (extra ray)", open_process, open_ray)
