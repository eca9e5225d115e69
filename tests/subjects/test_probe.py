"""Probe jobs: what is found is written as it is found, kept in the cache, and costs no row when the process dies.

A process that really dies is in tests/test_plugin.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.job import Checkpoint
from quantbench.core.scenario import Conditions, Scenario, Variant
from quantbench.core.trace import Probe, Probes
from quantbench.core.wire import read, write
from quantbench.measuring.passes.probes import NAMES, PROBES_FILE
from quantbench.measuring.subjects.probe import probed

if TYPE_CHECKING:
    from collections.abc import Mapping

CHECKPOINT = Checkpoint(name="m", kind="hf", path=Path("m"), revision="", content_hash="0" * 64)
SCENARIO = Scenario(model="m", variant=Variant(method="torch", precision="fp32"), prompts="two")
FOUND = {"cpu": Probe(found=True), "finetune": Probe(found=False, note="no", figures={"loss_first": 1.5})}


@dataclass
class Crash:
    reason: str = "the worker was ended by SIGSEGV"


class Worker:
    """Stands for the runner's process; counts how often it was started."""

    def __init__(self, folder: Path, found: Mapping[str, Probe], crash: Crash | None = None) -> None:
        self.runs = 0
        self._folder = folder
        self._found = found
        self._crash = crash

    def __call__(self) -> tuple[Path, Crash | None]:
        self.runs += 1
        if self._found:
            write(self._folder / PROBES_FILE, self._found)
        return self._folder, self._crash


def probes_in(path: Path | None) -> Probes:
    assert path is not None
    return read(path, Probes)


def test_a_second_run_costs_no_process(tmp_path: Path) -> None:
    worker = Worker(tmp_path, FOUND)

    assert probes_in(probed(SCENARIO, CHECKPOINT, worker)) == FOUND
    assert probes_in(probed(SCENARIO, CHECKPOINT, worker)) == FOUND
    assert worker.runs == 1


def test_a_control_and_other_prompts_share_the_probes(tmp_path: Path) -> None:
    worker = Worker(tmp_path, FOUND)
    probed(SCENARIO, CHECKPOINT, worker)

    probed(replace(SCENARIO, prompts="ten"), CHECKPOINT, worker)
    probed(replace(SCENARIO, variant=replace(SCENARIO.variant, control=True)), CHECKPOINT, worker)
    probed(replace(SCENARIO, conditions=Conditions(output_tokens=4, reference="gguf/f16")), CHECKPOINT, worker)

    assert worker.runs == 1


@pytest.mark.parametrize(
    ("scenario", "checkpoint"),
    [
        (replace(SCENARIO, variant=Variant(method="torch", precision="bf16")), CHECKPOINT),
        (replace(SCENARIO, conditions=Conditions(device="cuda")), CHECKPOINT),
        (SCENARIO, replace(CHECKPOINT, content_hash="1" * 64)),
    ],
    ids=["variant", "device", "content"],
)
def test_what_changes_the_answer_is_probed_again(tmp_path: Path, scenario: Scenario, checkpoint: Checkpoint) -> None:
    worker = Worker(tmp_path, FOUND)
    probed(SCENARIO, CHECKPOINT, worker)

    probed(scenario, checkpoint, worker)

    assert worker.runs == 2


def test_another_library_version_is_probed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(tmp_path, FOUND)
    for number in ("0.1", "0.2", "0.2"):
        monkeypatch.setattr("quantbench.measuring.subjects.probe.versions", lambda _, found=number: {"peft": found})
        probed(SCENARIO, CHECKPOINT, worker)

    assert worker.runs == 2


@pytest.mark.parametrize("found", [FOUND, {}], ids=["some were done", "none was done"])
def test_a_process_that_dies_costs_what_it_had_not_done_and_is_tried_again(tmp_path: Path, found: dict[str, Probe]) -> None:
    dead = Worker(tmp_path, found, Crash())

    first = probes_in(probed(SCENARIO, CHECKPOINT, dead))

    assert set(first) == set(NAMES)
    assert {name: first[name] for name in found} == found
    undone = [first[name] for name in NAMES if name not in found]
    assert undone
    assert {each.found for each in undone} == {None}
    assert {each.note for each in undone} == {"the probe process ended: the worker was ended by SIGSEGV"}
    alive = Worker(tmp_path, FOUND)
    assert probes_in(probed(SCENARIO, CHECKPOINT, alive)) == FOUND
    assert (dead.runs, alive.runs) == (1, 1)


def test_a_folder_that_could_not_be_made_costs_no_row(tmp_path: Path) -> None:
    assert probed(SCENARIO, CHECKPOINT, Worker(tmp_path / "gone", {}, Crash("no space left"))) is None


@pytest.mark.parametrize(
    ("kind", "method"), [("module", "torch"), ("server", "torch"), ("hf", "server")], ids=["module", "url", "endpoint"]
)
def test_modules_and_servers_are_not_probed(tmp_path: Path, kind: Any, method: str) -> None:
    scenario = replace(SCENARIO, variant=Variant(method=method, precision="as-served"))
    worker = Worker(tmp_path, FOUND)

    assert probed(scenario, replace(CHECKPOINT, kind=kind), worker) is None
    assert worker.runs == 0
