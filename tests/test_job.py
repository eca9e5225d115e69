"""Jobs travel as files: what the worker reads is what the runner wrote."""

from __future__ import annotations

import json
import tempfile
from dataclasses import fields
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.job import JOB_FILE, Checkpoint, Job, Task
from quantbench.core.scenario import Conditions, Effort, Variant

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
    preloaded=st.dictionaries(texts, st.floats(0, 100), max_size=3),
)


@given(jobs)
def test_a_job_reads_back_as_it_was_written(job: Job) -> None:
    with tempfile.TemporaryDirectory() as folder:
        job.save(Path(folder))
        assert Job.load(Path(folder)) == job
        assert json.loads((Path(folder) / JOB_FILE).read_text(encoding="ascii"))["kind"] == job.kind


@given(jobs)
def test_a_method_is_told_model_variant_and_conditions_and_nothing_of_the_prompts(job: Job) -> None:
    assert (job.spec.model, job.spec.variant, job.spec.conditions) == (job.checkpoint.name, job.variant, job.conditions)
    assert {each.name for each in fields(job.spec)} == {"model", "variant", "conditions"}
