"""A case: a scenario resolved once, at the edge of the runner. What receives one need not look anything up again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from quantbench.core.errors import QuantbenchError, UnsupportedError
from quantbench.core.job import Checkpoint, Failure, Task
from quantbench.core.record import Missing, Status
from quantbench.core.scenario import Scenario, Spec, Variant
from quantbench.methods import METHODS
from quantbench.models.chat import NO_TEMPLATE
from quantbench.models.checkpoint import resolve
from quantbench.planning import prompts
from quantbench.planning.outlook import Outlook, Outlooks
from quantbench.planning.prompts import PromptSet
from quantbench.planning.published import read_artifact
from quantbench.runtimes import has_template

_NO_LOGITS = "a server gives no logits over the whole vocabulary, so it cannot score a text; name a prompt set such as 'mixed'"
_NO_LENGTHS = "a server is sent one text at a time; name a prompt set such as 'mixed', and use --concurrency for several"
_NO_TEMPLATE_HERE = (
    "{} is known by its URL only, so its chat template is not here; name what it serves with --model, and the server with "
    "--server, or name a set of plain prompts such as 'mixed'"
)

_NOT_READ = "the files of an artifact are read first"

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A scenario with its prompt set, checkpoint, outlook and key; ``failure`` says why it cannot run, if so.

    ``prompts`` and ``checkpoint`` are None where they could not be loaded. ``variant`` is the scenario's, for an artifact with
    the method and precision that its files hold (empty where these could not be read); ``checkpoint`` is then its own and
    ``original`` the model's, and ``facts`` tell what was found out about it.
    """

    scenario: Scenario
    key: str
    outlook: Outlook
    variant: Variant
    prompts: PromptSet | None = None
    checkpoint: Checkpoint | None = None
    original: Checkpoint | None = None
    failure: Failure | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def spec(self) -> Spec:
        """What the method has to open."""
        return replace(self.scenario.spec, variant=self.variant)

    def task(self, reference: Path | str | None = None) -> Task:
        """The task for a worker; ``reference`` is the folder of the reference's artifact, or why there is none."""
        assert self.prompts is not None
        return Task(
            prompts_name=self.scenario.prompts,
            prompts=self.prompts.prompts,
            conversations=self.prompts.conversations,
            reference=reference if isinstance(reference, Path) else None,
            no_reference=reference if isinstance(reference, str) else "",
            is_text=self.prompts.is_text,
            tokens=self.prompts.tokens,
            batch=self.scenario.batch,
        )


class Cases:
    """Resolves scenarios; what several share (checkpoints, prompt sets, forecasts) is resolved once."""

    def __init__(self, *, trust_remote_code: bool = False) -> None:
        """Nothing is read before the first scenario is resolved."""
        self._trust = trust_remote_code
        self._outlooks = Outlooks()
        self._checkpoints: dict[str, Checkpoint | QuantbenchError] = {}
        self._prompts: dict[str, PromptSet | QuantbenchError] = {}
        self._cases: dict[Scenario, Case] = {}

    def of(self, scenario: Scenario) -> Case:
        """The scenario's case. A model is fetched and hashed only if it may fit."""
        if scenario not in self._cases:
            self._cases[scenario] = self._resolved(scenario)
        return self._cases[scenario]

    def _resolved(self, scenario: Scenario) -> Case:
        asked, artifact = scenario, scenario.variant.artifact
        outlook = Outlook(weight_bytes=Missing(_NOT_READ)) if artifact else self._outlooks.by_name(scenario)
        chosen: PromptSet | None = None
        checkpoint: Checkpoint | None = None
        original: Checkpoint | None = None
        failure: Failure | None = None
        facts: Mapping[str, str] = {}
        try:
            _require_room(scenario, outlook)
            checkpoint = self._checkpoint(scenario.model)
            if artifact:
                original, checkpoint = checkpoint, self._checkpoint(scenario.variant.place)
                variant, facts = read_artifact(scenario.variant, checkpoint, original)
                asked = replace(scenario, variant=variant)
            METHODS[asked.variant.method].check(checkpoint)
            if isinstance(outlook.weight_bytes, Missing):  # the files may tell more than the name
                outlook = self._outlooks.by_files(asked, checkpoint)
                _require_room(asked, outlook)
            chosen = self._prompt_set(scenario.prompts)
            _require_answers(asked, chosen)
            _require_template(original or checkpoint, chosen)
        except QuantbenchError as error:
            status = Status.SKIPPED if isinstance(error, UnsupportedError) else Status.ERROR
            failure = Failure(status=status, reason=str(error))
        return Case(
            scenario=scenario, key=scenario.key(self._identity(asked, checkpoint, original)), outlook=outlook,
            variant=asked.variant, prompts=chosen, checkpoint=checkpoint, original=original, failure=failure, facts=facts,
        )  # fmt: skip

    def _checkpoint(self, model: str) -> Checkpoint:
        return _once(self._checkpoints, model, lambda: resolve(model, trust_remote_code=self._trust))

    def _prompt_set(self, name: str) -> PromptSet:
        return _once(self._prompts, name, lambda: prompts.load(name))

    def _identity(self, scenario: Scenario, checkpoint: Checkpoint | None, original: Checkpoint | None) -> Mapping[str, str]:
        """Hashes of the content behind the names; a name itself where it has no content."""
        variant = scenario.variant
        artifact = {"artifact": _content(checkpoint) or variant.place} if variant.artifact else {}
        try:
            content = self._prompt_set(scenario.prompts).content_hash(scenario.batch)
        except QuantbenchError:
            content = scenario.prompts
        reference = scenario.reference().spec
        compared = {f"reference_{name}": asked for name, asked in METHODS[reference.variant.method].recipe(reference).items()}
        return {
            "model": _content(original if variant.artifact else checkpoint) or scenario.model,
            "prompts": content,
            **artifact,
            **(METHODS[variant.method].recipe(scenario.spec) if variant.method else {}),
            **compared,
        }


def _content(checkpoint: Checkpoint | None) -> str:
    return f"{checkpoint.revision} {checkpoint.content_hash}" if checkpoint else ""


def _require_room(scenario: Scenario, outlook: Outlook) -> None:
    """Raise UnsupportedError, with the arithmetic, where the variant cannot fit here."""
    if outlook.refusal:
        smaller = "precision" if scenario.batch == 1 else "precision or batch"
        raise UnsupportedError(f"{outlook.refusal}; choose a smaller {smaller}, or run where there is more memory")


def _require_answers(scenario: Scenario, chosen: PromptSet) -> None:
    """Raise UnsupportedError for a prompt set or batch that an endpoint cannot serve."""
    if METHODS[scenario.variant.method].endpoint and (chosen.alone or scenario.batch > 1):
        raise UnsupportedError(_NO_LOGITS if chosen.is_text else _NO_LENGTHS)


def _require_template(checkpoint: Checkpoint, chosen: PromptSet) -> None:
    """Raise UnsupportedError where conversations are asked of a model without a chat template."""
    if chosen.conversations and checkpoint.kind == "server":
        raise UnsupportedError(_NO_TEMPLATE_HERE.format(checkpoint.name))
    if chosen.conversations and not (checkpoint.speaks and has_template(checkpoint.path)):
        raise UnsupportedError(NO_TEMPLATE.format(checkpoint.name))


def _once(known: dict[str, Found | QuantbenchError], name: str, ask: Callable[[], Found]) -> Found:
    """What ``ask`` returns or raises, called the first time only."""
    if name not in known:
        try:
            known[name] = ask()
        except QuantbenchError as error:
            known[name] = error
    found = known[name]
    if isinstance(found, QuantbenchError):
        raise found
    return found
