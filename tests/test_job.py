"""Jobs travel as files: what the worker reads is what the runner wrote."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.errors import QuantbenchError
from quantbench.core.identity import FileIdentity, HashedFile
from quantbench.core.job import JOB_FILE, Checkpoint, Failure, Job, Task
from quantbench.core.record import Status
from quantbench.core.scenario import Conditions, Effort, Variant
from quantbench.core.wire import read, write

texts = st.text(st.characters(), max_size=12)
paths = st.sampled_from([Path("/models/tiny"), Path("relative/with space"), Path("/models/tiny.gguf")])
checkpoints = st.builds(
    Checkpoint,
    name=texts,
    kind=st.sampled_from(["hf", "gguf"]),
    path=paths,
    revision=texts,
    content_hash=texts,
    trust_remote_code=st.booleans(),
    files=st.lists(
        st.builds(HashedFile, path=texts, sha256=texts, identity=st.builds(FileIdentity, *[st.integers(0, 2**63)] * 5)),
        max_size=2,
    ).map(tuple),
)
tasks = st.builds(
    Task, prompts_name=texts, prompts=st.lists(texts, min_size=1, max_size=3).map(tuple), reference=st.none() | paths
)
jobs = st.builds(
    Job,
    kind=st.sampled_from(["measure", "prepare", "reference"]),
    checkpoint=checkpoints,
    variant=st.builds(Variant, method=texts, precision=texts, control=st.booleans()),
    conditions=st.builds(Conditions, device=st.sampled_from(["cpu", "cuda:1"]), seed=st.integers(0, 2**40)),
    effort=st.builds(Effort, budget_s=st.floats(0, 1e3), max_rounds=st.integers(1, 1000)),
    tasks=st.lists(tasks, min_size=1, max_size=3).map(tuple),
    probes=st.none() | paths,
    preloaded=st.dictionaries(texts, st.floats(0, 100), max_size=3),
    root=st.none() | st.tuples(st.integers(1, 2**22), st.integers(0, 2**40)),
)
JOB = Job(
    kind="measure", checkpoint=Checkpoint(name="m", kind="hf", path=Path("m"), revision="", content_hash=""),
    variant=Variant(method="torch", precision="fp32"), conditions=Conditions(), effort=Effort(),
    tasks=(Task(prompts_name="two", prompts=("a", "b"), reference=None),),
)  # fmt: skip


@given(jobs)
def test_a_job_reads_back_as_it_was_written(job: Job) -> None:
    with tempfile.TemporaryDirectory() as folder:
        job.save(Path(folder))
        assert Job.load(Path(folder)) == job
        assert json.loads((Path(folder) / JOB_FILE).read_text(encoding="ascii"))["kind"] == job.kind


@given(jobs)
def test_named_tuples_in_a_job_come_back_as_such(job: Job) -> None:
    with tempfile.TemporaryDirectory() as folder:
        job.save(Path(folder))
        for each in Job.load(Path(folder)).checkpoint.files:
            assert (type(each), type(each.identity)) == (HashedFile, FileIdentity)


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        (("checkpoint", "revision"), ..., "required field missing @ it.checkpoint.revision"),
        (("checkpoint", "colour"), "red", "extra fields found (colour) @ it.checkpoint"),
        (("checkpoint", "name"), {"a": 1}, "expected str @ it.checkpoint.name"),
        (("checkpoint", "trust_remote_code"), 1, "expected bool @ it.checkpoint.trust_remote_code"),
        (("kind",), "mesure", "@ it.kind"),
        (("conditions",), "cpu", "@ it.conditions"),
        (("effort", "max_rounds"), 1.5, "expected int @ it.effort.max_rounds"),
        (("tasks", 0, "prompts"), "ab", "@ it.tasks[0].prompts"),
        (("tasks", 0, "prompts"), {"a": "b"}, "@ it.tasks[0].prompts"),
        (("root",), [1, 2, 3], "@ it.root"),
    ],
    ids=["missing", "unknown", "dict for text", "number for truth", "no such kind", "text for a part", "float for int",
         "text for a list", "dict for a list", "too long"],
)  # fmt: skip
def test_a_field_that_is_missing_unknown_or_of_another_shape_is_named(
    tmp_path: Path, place: tuple[str | int, ...], value: object, fault: str
) -> None:
    JOB.save(tmp_path)
    body: Any = json.loads((tmp_path / JOB_FILE).read_text())
    part = body
    for step in place[:-1]:
        part = part[step]
    if value is ...:
        del part[place[-1]]
    else:
        part[place[-1]] = value
    (tmp_path / JOB_FILE).write_text(json.dumps(body))

    with pytest.raises(QuantbenchError, match=re.escape(fault)):
        Job.load(tmp_path)


def test_what_is_not_json_is_said_with_the_file(tmp_path: Path) -> None:
    (tmp_path / JOB_FILE).write_text('{"kind": ')

    with pytest.raises(QuantbenchError, match=re.escape(str(tmp_path / JOB_FILE))):
        Job.load(tmp_path)


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(QuantbenchError, match=re.escape("expected str @ it.reason")):
        write(tmp_path / "failure.json", Failure(status=Status.OOM, reason=None))  # type: ignore[arg-type]

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", Status)
def test_a_failure_keeps_its_status(tmp_path: Path, status: Status) -> None:
    failure = Failure(status=status, reason="it ended")
    write(tmp_path / "failure.json", failure)

    assert read(tmp_path / "failure.json", Failure) == failure
    assert read(tmp_path / "failure.json", Failure).status is status


@given(jobs)
def test_a_method_is_told_model_variant_and_conditions_and_nothing_of_the_prompts(job: Job) -> None:
    assert (job.spec.model, job.spec.variant, job.spec.conditions) == (job.checkpoint.name, job.variant, job.conditions)
    assert {each.name for each in fields(job.spec)} == {"model", "variant", "conditions"}
