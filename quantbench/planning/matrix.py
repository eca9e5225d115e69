"""The axes of a run, and the scenarios that they multiply to: model x method x precision x prompt set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from quantbench import models
from quantbench.core.errors import UsageError, unknown_name
from quantbench.core.scenario import SEEDED_INPUTS, Conditions, Scenario, Variant, reads
from quantbench.methods import METHODS, Method
from quantbench.planning import prompts
from quantbench.planning.published import artifact_variant, check_original, check_place
from quantbench.planning.reference import Compared, best_that_fits
from quantbench.planning.settled import settled
from quantbench.planning.usual_prompts import unseen, usual_prompts

GPU_OUTPUT_TOKENS = 128
"""Timed tokens on a GPU, unless somebody sets another length: as many as llama-bench and vLLM time by default. Of 32, the first
ones go to capturing CUDA graphs where a runtime does that."""

_MODULE = "module"
"""The checkpoint kind of a built-in module without tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Axes and conditions; ``source`` names the file for messages.

    ``prompts`` are written as on the command line, ``SET`` or ``SET@B``, and without any each model gets its usual set;
    ``batches``, if any, apply to all of them.
    ``for_builtin``: the variants were chosen for built-in models, so any other model gets only the cheap ones.
    ``probes``: the variants that are probed; None stands for all. ``given`` names the conditions that somebody set: without a
    reference among them each model is compared with the best that fits. ``artifacts`` are published quantizations of the one
    model, compared with it besides the ``variants``.
    """

    models: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    variants: tuple[Variant, ...]
    control: bool = True
    conditions: Conditions = field(default_factory=Conditions)
    batches: tuple[int, ...] = ()
    source: str = ""
    for_builtin: bool = False
    probes: frozenset[str] | None = None
    energy: bool = True
    given: frozenset[str] = field(default=frozenset(), compare=False)
    artifacts: tuple[Variant, ...] = ()

    @property
    def own(self) -> tuple[str, ...]:
        """Models that do not come with quantbench, unless variants were chosen for them."""
        return tuple(name for name in self.models if name not in models.MODELS) if self.for_builtin else ()


def default_matrix() -> Matrix:
    """Every method at its usual precisions, on the canary with its usual prompts."""
    offered = [(method.name, each) for method in METHODS for each in method.precisions]
    variants = tuple(Variant(method=name, precision=each.name) for name, each in offered if each.usual)
    timed = Conditions(answer_tokens=Conditions().output_tokens)  # the timed answers are then the compared ones
    return Matrix(models=("canary",), variants=variants, conditions=timed, for_builtin=True)


def every_variant(methods: Sequence[str], precisions: Sequence[str]) -> list[Variant]:
    """All variants that can be made, or those of the named methods and precisions; UsageError for a name that there is not."""
    chosen = [METHODS[name] for name in methods] or _makers(precisions)
    known = {each.name for method in METHODS for each in method.precisions}
    for name in precisions:
        if name not in known:
            raise unknown_name("precision", name, known)
    found = [
        Variant(method=method.name, precision=each.name)
        for method in chosen
        for each in method.precisions
        if not precisions or each.name in precisions
    ]
    if not found:
        have = ", ".join(dict.fromkeys(each.name for method in chosen for each in method.precisions))
        raise UsageError(f"none of the chosen methods has precision {' or '.join(precisions)}; choose one of {have}")
    return found


def _makers(precisions: Sequence[str] = ()) -> list[Method]:
    """The methods that quantize, or leave as it is; and if they lack one of ``precisions``, those that only open such files."""
    offered = {each.name for method in METHODS if not method.published for each in method.precisions}
    return [method for method in METHODS if not method.published or set(precisions) - offered]


def select(
    matrix: Matrix, *, models: Sequence[str], methods: Sequence[str], precisions: Sequence[str], prompts: Sequence[str]
) -> Matrix:
    """Narrow a matrix by options.

    Models and prompt sets replace the matrix's own. Methods and precisions filter it; a method that the matrix lacks is added
    with its usual precisions, and a precision that the matrix lacks is added for every (chosen) method that has it.
    """
    variants, named = matrix.variants, bool(methods or precisions)
    if methods:
        held = {variant.method for variant in variants}
        extra = [variant for name in methods if name not in held for variant in _usual(name)]
        variants = tuple(variant for variant in variants if variant.method in methods) + tuple(extra)
    if precisions:
        variants = _with_precisions(variants, precisions, methods or [method.name for method in _makers(precisions)])
    return replace(
        matrix, models=tuple(models) or matrix.models, prompts=tuple(prompts) or matrix.prompts, variants=variants,
        for_builtin=matrix.for_builtin and not named,
    )  # fmt: skip


def with_artifacts(matrix: Matrix, artifacts: Sequence[str], *, alone: bool) -> Matrix:
    """The matrix with published artifacts, each written ``NAME=WHERE``; ``alone``: without other variants than the reference.

    UsageError for a name that occurs twice, for several models, and for one that nobody publishes artifacts of.
    """
    found = (*matrix.artifacts, *map(artifact_variant, artifacts))
    names = [each.artifact for each in found]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UsageError(f"two artifacts are named {twice!r}; give each a name of its own")
    return replace(matrix, artifacts=found, variants=() if alone else matrix.variants)


def left_out(matrix: Matrix) -> tuple[str, ...]:
    """What is left out for the user's own models, since it is slow and was not named: methods with the reason, precisions."""
    if not matrix.variants or all(settled(name) for name in matrix.own):
        return ()
    device = matrix.conditions.device
    kept = {(each.method, each.precision) for each in matrix.variants if _is_cheap(each, device)}
    costly = [f"{method.name} ({why})" for method in METHODS if (why := _cost(method, device))]
    others = {
        method.name: [each.name for each in method.precisions if (method.name, each.name) not in kept]
        for method in METHODS
        if not _cost(method, device) and not method.endpoint and not method.published
    }
    more = [f"{name} {_listed(precisions)}" for name, precisions in others.items() if precisions]
    return (*costly, *more)


def hints(matrix: Matrix, references: Mapping[str, Compared]) -> tuple[str, ...]:
    """Sentences about models: those planned only at the precision that they already have, and those not compared with fp32.

    Also about those that may have a chat template, which cannot be seen yet.
    """
    kept = [found.sentence for name in matrix.own if not matrix.artifacts and (found := settled(name))]
    others = [each.why for each in references.values() if each.why]
    hidden = [] if matrix.prompts else [said for name in matrix.models if (said := unseen(name))]
    return (*kept, *others, *hidden)


_MOST_LISTED = 5


def _listed(precisions: Sequence[str]) -> str:
    return ", ".join(precisions) if len(precisions) <= _MOST_LISTED else f"in {len(precisions)} more precisions"


def _cost(method: Method, device: str) -> str:
    """Why a method is slow on a device; empty where it is not."""
    return method.costly or (method.costly_on_cpu if device == "cpu" else "")


def _is_cheap(variant: Variant, device: str) -> bool:
    method = METHODS[variant.method]
    precision = method.precision(variant.precision)
    first = precision.first and (precision.first_on_cpu or device != "cpu")
    return first and not _cost(method, device) and not method.endpoint


def _usual(method: str) -> list[Variant]:
    """The variants of a method named without precisions: the usual ones, or all where none is usual."""
    offered = METHODS[method].precisions
    return [Variant(method=method, precision=each.name) for each in offered if each.usual] or [
        Variant(method=method, precision=each.name) for each in offered
    ]


def _with_precisions(variants: Sequence[Variant], precisions: Sequence[str], methods: Sequence[str]) -> tuple[Variant, ...]:
    """The variants of the chosen precisions; one that no variant has is added for each of ``methods`` that offers it."""
    offered = [Variant(method=name, precision=each.name) for name in methods for each in METHODS[name].precisions]
    known = {each.name for method in METHODS for each in method.precisions}
    chosen: list[Variant] = []
    for name in precisions:
        if name not in known:
            raise unknown_name("precision", name, known)
        chosen += [each for each in variants if each.precision == name] or [each for each in offered if each.precision == name]
    if not chosen:
        have = ", ".join(sorted({each.precision for each in offered}))
        raise UsageError(f"none of the chosen methods has precision {' or '.join(precisions)}; choose one of {have}")
    return tuple(dict.fromkeys(chosen))


def scenarios(matrix: Matrix, references: Mapping[str, Compared] | None = None) -> list[Scenario]:
    """All scenarios: per model the reference first, its control after it, then the other variants in order.

    ``references`` is what ``chosen_references`` gave, where somebody asked for it already. Raises UsageError for a model,
    method, precision or prompt set that does not exist, and for an id that occurs twice.
    """
    conditions = _at_length(matrix)
    method, _, precision = conditions.reference.partition("/")
    METHODS[method].precision(precision)
    if METHODS[method].endpoint:
        raise UsageError(f"reference {conditions.reference!r} is a server, which gives no logits; choose another method")
    for name in matrix.models:
        models.check_name(name)
    _check_original(matrix)
    sets = {model: list(_sets(matrix, model)) for model in matrix.models}
    for name in dict.fromkeys(name for each in sets.values() for name, _ in each):
        prompts.check_name(name)
    for variant in matrix.variants:
        METHODS[variant.method].precision(variant.precision)
    references = chosen_references(matrix) if references is None else references
    asked = {model: replace(conditions, reference=references[model].reference) for model in matrix.models}
    planned = [
        Scenario(model=model, variant=variant, prompts=name, batch=batch, conditions=asked[model])
        for model in matrix.models
        for variant, fitting in _fitting(model, _ordered(matrix, model, _variant(asked[model].reference)), sets[model])
        for name, batch in fitting
    ]
    ordered = matrix.variants
    if not planned and ordered and matrix.models and all(map(models.is_module, matrix.models)):
        able = " or ".join(method.name for method in METHODS if _MODULE in method.kinds)
        names = ", ".join(dict.fromkeys(variant.method for variant in ordered))
        raise UsageError(f"model {matrix.models[0]!r} is a module without tokens, which {names} cannot open; use {able}")
    if not planned:
        raise UsageError(f"{matrix.source or 'the matrix'} plans no scenario; name at least one model, method and prompt set")
    _check_unique(planned)
    return planned


def _check_original(matrix: Matrix) -> None:
    """Raise UsageError where artifacts have no single original."""
    if matrix.artifacts and len(matrix.models) != 1:
        raise UsageError(f"artifacts belong to one model, and {len(matrix.models)} are named; name their original with --model")
    for each in matrix.artifacts:
        check_original(matrix.models[0])
        check_place(each)


def _at_length(matrix: Matrix) -> Conditions:
    """The conditions, with longer timed answers on a GPU where nobody set their length."""
    conditions = matrix.conditions
    set_by_somebody = "output_tokens" in matrix.given or conditions.output_tokens != Conditions().output_tokens
    if set_by_somebody or not conditions.device.startswith("cuda"):
        return conditions
    return replace(conditions, output_tokens=GPU_OUTPUT_TOKENS)


def chosen_references(matrix: Matrix) -> dict[str, Compared]:
    """By model, what its variants are compared with: what was asked for, else the best that fits with the first prompt set."""
    named = matrix.conditions.reference
    if "reference" in matrix.given or named != Conditions().reference:
        return dict.fromkeys(matrix.models, Compared(reference=named))
    if matrix.artifacts and (found := settled(matrix.models[0])):  # an original that is a file is compared with as it is
        return dict.fromkeys(matrix.models, Compared(reference=found.variants[0].name))
    conditions = _at_length(matrix)
    return {model: best_that_fits(model, next(_sets(matrix, model))[0], conditions) for model in matrix.models}


def _variant(name: str) -> Variant:
    method, _, precision = name.partition("/")
    return Variant(method=method, precision=precision)


def _ordered(matrix: Matrix, model: str, reference: Variant) -> Sequence[Variant]:
    """A model's variants, the reference first, then its control; for the user's own model what it holds, or the cheap ones."""
    variants = matrix.variants
    if model in matrix.own and variants:
        found = settled(model)
        variants = found.variants if found else tuple(each for each in variants if _is_cheap(each, matrix.conditions.device))
    if matrix.artifacts:
        variants = (*dict.fromkeys((reference, *variants)), *matrix.artifacts)
    ordered = sorted(variants, key=lambda variant: variant != reference)
    if matrix.control and reference in ordered:
        ordered.insert(1, replace(reference, control=True))
    return ordered


def _sets(matrix: Matrix, model: str) -> Iterator[tuple[str, int]]:
    """A model's prompt sets with their batches; a text is scored alone, and inputs of a module are single."""
    for text in matrix.prompts or (usual_prompts(model),):
        name, batch = prompts.parse(text)
        if not matrix.batches or reads(name) != "prompts":
            yield name, batch
            continue
        if batch > 1:
            asked = ",".join(map(str, matrix.batches))
            raise UsageError(f"prompt set {text!r} names one batch and --batch {asked} another; drop one of them")
        yield from ((name, each) for each in matrix.batches)


def _fitting(
    model: str, variants: Sequence[Variant], sets: Sequence[tuple[str, int]]
) -> Iterable[tuple[Variant, Sequence[tuple[str, int]]]]:
    """The variants that can be planned for a model, each with its prompt sets; a module has its seeded inputs only."""
    if models.is_module(model):
        return [(variant, [(SEEDED_INPUTS, 1)]) for variant in variants if _MODULE in METHODS[variant.method].kinds]
    if any(name == SEEDED_INPUTS for name, _ in sets):
        raise UsageError(f"model {model!r} reads text, not {SEEDED_INPUTS!r} inputs; name a prompt set such as 'mixed'")
    return [(variant, sets) for variant in variants]


def _check_unique(planned: Sequence[Scenario]) -> None:
    seen: set[str] = set()
    for scenario in planned:
        identifier = scenario.id
        if identifier in seen:
            raise UsageError(f"scenario {identifier!r} is planned twice; name each model, precision and prompt set once")
        seen.add(identifier)
