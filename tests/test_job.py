"""Jobs travel as files: what the worker reads is what the runner wrote."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from quantbench.job import JOB_FILE, Checkpoint, Job, Task
from quantbench.scenario import Conditions, Effort, Variant

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
        assert json.loads((Path(folder) / JOB_FILE).read_text(encoding="ascii"))["version"] == 1


@given(jobs)
def test_each_task_is_one_scenario_of_the_jobs_variant(job: Job) -> None:
    scenarios = [job.scenario_of(task) for task in job.tasks]
    assert job.scenario == scenarios[0]
    assert [scenario.prompts for scenario in scenarios] == [task.prompts_name for task in job.tasks]
    assert {scenario.job for scenario in scenarios} == {(job.checkpoint.name, job.variant, job.conditions)}
