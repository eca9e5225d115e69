"""References, which the variants of a model are compared with: made once per prompt set and kept in the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quantbench.core import cache
from quantbench.core.checksums import of_run
from quantbench.core.disks import means_full, which_full
from quantbench.core.errors import QuantbenchError
from quantbench.core.job import Checkpoint
from quantbench.core.machine import versions
from quantbench.core.record import Status
from quantbench.core.scenario import Scenario
from quantbench.core.trace import NO_REFERENCE
from quantbench.methods import METHODS
from quantbench.planning.case import Case
from quantbench.planning.planner import runtime_of
from quantbench.running.jobs import Jobs

_MAKERS = (
    "quantbench.measuring.passes.reference", "quantbench.measuring.passes.similarity", "quantbench.measuring.passes.text",
    "quantbench.models.tokenizer", "quantbench.models.chat", "quantbench.runtimes.transformers.model",
    "quantbench.runtimes.transformers.tokenizer", "quantbench.runtimes.llama_cpp.model",
    "quantbench.runtimes.llama_cpp.tokenizer", "quantbench.core.trace",
)  # fmt: skip
"""The modules that sample, answer, score and write a reference, besides the method's own."""

_NOT_MADE_BY = ("threads", "reference", "output_tokens", "decode_path")
_NOT_OF_A_TEXT = ("answer_tokens", "answered_prompts", "continuation_tokens", "seed")


class References:
    """The references of one run."""

    def __init__(self, jobs: Jobs, resolve: Callable[[Scenario], Case]) -> None:
        """``jobs`` make them; ``resolve`` gives the case of a scenario."""
        self._jobs = jobs
        self._resolve = resolve
        self._found: dict[Scenario, Path | str] = {}

    def of(self, case: Case) -> Path | str:
        """The folder of the artifact that the case is compared with; or why there is none, which costs only similarity."""
        wanted = case.scenario.reference()
        if wanted not in self._found:
            self._found[wanted] = self._make(wanted, case.original or case.checkpoint)
        return self._found[wanted]

    def _make(self, wanted: Scenario, checkpoint: Checkpoint | None) -> Path | str:
        if checkpoint is None or not checkpoint.comparable:
            return NO_REFERENCE
        case = self._resolve(wanted)
        if case.outlook.refusal:
            mend = "choose a smaller one with --reference, such as torch/bf16"
            return f"the reference does not fit: {case.outlook.refusal}; {mend}"
        if case.failure:
            could_not = f"the reference {wanted.variant.name} could not be made: {case.failure.reason}"
            return NO_REFERENCE if case.failure.status is Status.SKIPPED else could_not

        def make(folder: Path) -> None:
            if METHODS[wanted.variant.method].preparer:
                self._jobs.run("prepare", case, [case.task()])
            _, failure = self._jobs.run("reference", case, [case.task()], into=folder)
            if failure:
                hint = "; raise --timeout, or make a smaller one with --profile quick"
                raise QuantbenchError(failure.reason + hint * (failure.status is Status.TIMEOUT))

        try:
            with of_run(self._jobs.folder):
                return cache.artifact("reference", identity(case), make)
        except (QuantbenchError, OSError) as error:
            why = which_full(self._jobs.folder, error) if isinstance(error, OSError) and means_full(error) else error
            return f"the reference {wanted.variant.name} could not be made: {why}"


def identity(case: Case) -> dict[str, object]:
    """Everything that determines a reference's artifact."""
    assert case.checkpoint is not None
    assert case.prompts is not None
    scenario = case.scenario
    method = METHODS[scenario.variant.method]
    others = (*_NOT_MADE_BY, *(_NOT_OF_A_TEXT if scenario.reads == "text" else ()))
    return {
        "content": case.checkpoint.content_hash, "prompts": case.prompts.content_hash(), "variant": scenario.variant.name,
        "conditions": {name: value for name, value in scenario.heeded().items() if name not in others},
        "recipe": dict(method.recipe(scenario.spec)),
        "versions": versions(_packages(method.name)),
        "made_by": cache.made_by(*_MAKERS, method.opener.__module__),
    }  # fmt: skip


def _packages(method: str) -> list[str]:
    """The packages that make the references of a method."""
    own = METHODS.distributions.get(method)
    return [*runtime_of(method).packages, *([own] if own else [])]
