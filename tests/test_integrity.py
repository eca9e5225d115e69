"""What is read is what was made: runs beside damaged caches and checkpoints that change, through the runner."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantbench.core.checksums import CHECKSUMS
from quantbench.core.errors import ModelError
from quantbench.core.machine import describe
from quantbench.core.record import Record, Status
from quantbench.core.scenario import Conditions, Effort, Scenario, Variant
from quantbench.methods import METHODS, LoadedModel, Settings
from quantbench.methods.qat import prepare_qat
from quantbench.models.checkpoint import require_unchanged, resolve, watched
from quantbench.planning.options import Plan
from quantbench.results.store import Run, Store
from quantbench.running.runner import Runner
from quantbench.runtimes.gptqmodel import quantize
from quantbench.runtimes.llama_cpp import imatrix
from quantbench.runtimes.transformers import calibration

CONDITIONS = Conditions(output_tokens=2, answer_tokens=2, continuation_tokens=4, threads=1)
EFFORT = Effort(min_rounds=1, max_rounds=1, budget_s=0.01, energy=False, besides=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of one's own."""
    folder = tmp_path / "model"
    shutil.copytree(resolve("canary").path, folder)
    return folder


def run(folder: Path, name: str, model: str = "canary", **plan: object) -> tuple[Record, Runner]:
    """bf16 measured inline, in a run of its own."""
    scenario = Scenario(model=model, variant=Variant(method="torch", precision="bf16"), prompts="two", conditions=CONDITIONS)
    of_run = Run(machine=describe(), versions={}, command="", commit="", profile="quick", engine="inline", run_id=name)
    wanted = Plan(scenarios=(scenario,), engine="inline", **{"effort": EFFORT, **plan})  # type: ignore[arg-type]
    with Runner(wanted, Store(str(folder / "results"), of_run)) as runner:
        return runner.measure(scenario), runner


def shift_rows(reference: Path) -> None:
    """The log-probabilities of each position at the next one."""
    path = reference / "logprobs.npy"
    np.save(path, np.roll(np.load(path), 1, axis=0))


def edit_answers(reference: Path) -> None:
    """Another continuation than the one that was scored."""
    path = reference / "reference.json"
    path.write_text(path.read_text().replace("1", "2", 1))


@pytest.mark.parametrize("damage", [shift_rows, edit_answers])
def test_a_damaged_reference_is_made_again_and_the_row_is_as_before(damage: Callable[[Path], None], tmp_path: Path) -> None:
    sound, _ = run(tmp_path, "first")
    (reference,) = (path.parent for path in (tmp_path / "cache" / "reference").glob(f"*/{CHECKSUMS}"))
    damage(reference)
    again, runner = run(tmp_path, "second")
    assert again.status is Status.OK, again.reason
    assert again.values["kld_mean"] == sound.values["kld_mean"]
    (note,) = runner.notes
    assert note.startswith(f"reference {reference.name} in the cache was damaged (")
    assert run(tmp_path, "third")[1].notes == []


def test_runs_that_keep_their_jobs_in_one_place_do_not_share_a_folder(tmp_path: Path) -> None:
    """Nor does a run with itself when it goes on; and each measures the bandwidth once."""
    jobs = tmp_path / "jobs"
    for name in ("one", "two", "one"):
        assert run(tmp_path, name, keep_jobs=jobs, effort=replace(EFFORT, besides=True))[0].status is Status.OK
    assert sorted(path.name for path in jobs.iterdir()) == ["one", "one-2", "two"]
    assert [len(list(folder.glob("bandwidth-*.json"))) for folder in jobs.iterdir()] == [1, 1, 1]


def rewrite(path: Path) -> None:
    """As many bytes, one of them another, and the time that it had."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def changing(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """Something writes to the checkpoint while bf16 is being loaded."""
    opener = METHODS["torch"].opener

    @contextmanager
    def open_meanwhile(scenario: Scenario, settings: Settings) -> Iterator[LoadedModel]:
        if scenario.variant.precision == "bf16":
            rewrite(model / "model.safetensors")
        with opener(scenario, settings) as opened:
            assert opened is not None
            yield opened  # type: ignore[misc]

    monkeypatch.setattr(METHODS["torch"], "opener", open_meanwhile)


@pytest.mark.usefixtures("changing")
def test_a_checkpoint_that_changes_while_it_is_loaded_is_an_error_row(tmp_path: Path, model: Path) -> None:
    record, _ = run(tmp_path, "first", str(model))
    assert record.status is Status.ERROR
    assert record.reason.startswith(f"{model / 'model.safetensors'} changed after it was hashed")


def test_no_artifact_is_kept_of_a_checkpoint_that_changed_meanwhile(model: Path, tmp_path: Path) -> None:
    from quantbench.core.cache import artifact

    checkpoint = resolve(str(model))
    with pytest.raises(ModelError, match=r"model\.safetensors changed after it was hashed"):
        artifact("gguf", {"a": 1}, watched(checkpoint, lambda _: rewrite(model / "model.safetensors")))
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []
    assert resolve(str(model)).content_hash != checkpoint.content_hash


CHANGES: dict[str, Callable[[Path], object]] = {
    "equal size and time": lambda folder: rewrite(folder / "model.safetensors"),
    "configuration": lambda folder: (folder / "config.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), "rope_theta": 2.0})
    ),
    "gone": lambda folder: (folder / "tokenizer.json").unlink(),
    "added": lambda folder: (folder / "generation_config.json").write_text("{}"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_seen(change: Callable[[Path], object], model: Path) -> None:
    (model / "generation_config.json").unlink(missing_ok=True)
    checkpoint = resolve(str(model))
    require_unchanged(checkpoint)
    change(model)
    with pytest.raises(ModelError, match="changed after it was hashed"):
        require_unchanged(checkpoint)


def test_other_rights_links_and_times_of_the_same_content_are_no_change(model: Path, tmp_path: Path) -> None:
    checkpoint = resolve(str(model))
    weights = model / "model.safetensors"
    weights.chmod(0o600)
    (tmp_path / "link").hardlink_to(weights)
    weights.touch()
    require_unchanged(checkpoint)
    shutil.copyfile(weights, tmp_path / "copy")
    (tmp_path / "copy").replace(weights)
    require_unchanged(checkpoint)


@pytest.mark.parametrize(
    ("module", "ask", "precision"),
    [
        ("runtimes.transformers.calibration", calibration.calibration_ids, "gptq/int4-g128"),
        ("runtimes.gptqmodel.quantize", quantize.prepared, "gptq/int4-g128"),
        ("runtimes.llama_cpp.imatrix", imatrix.importance_matrix, "gguf/q4_k_m-imat"),
        ("methods.qat", prepare_qat, "qat/int4"),
    ],
)
def test_what_is_calibrated_is_keyed_by_the_device_and_by_its_makers_source(
    module: str, ask: Callable[[Scenario, Settings], object], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One GPU is like another; a source that changed makes it again."""
    keys: list[dict[str, object]] = []

    def kept(kind: str, asked: dict[str, object], make: object) -> Path:
        keys.append(asked)
        raise ModelError("enough")

    monkeypatch.setattr(f"quantbench.{module}.artifact", kept)
    monkeypatch.setattr(quantize, "compile_kernels", lambda *_: None)
    method, _, name = precision.partition("/")
    settings = Settings(checkpoint=resolve("canary"), threads=1, context=64)
    for device in ("cpu", "cuda:0", "cuda:1"):
        conditions = Conditions(device=device)
        scenario = Scenario(
            model="canary", variant=Variant(method=method, precision=name), prompts="two", conditions=conditions
        )
        with pytest.raises(ModelError, match="enough"):
            ask(scenario, settings)
    cpu, first, second = keys
    assert cpu != first == second
    assert len(str(cpu["made_by"])) == 24
