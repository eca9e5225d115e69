"""The rules by which claims outside tables are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

from quantbench.advice.words import words
from quantbench.claims import marks as m
from quantbench.claims import sizes
from quantbench.claims.cells import INSTRUMENT_CHECK, capability
from quantbench.claims.claimed import Prose
from quantbench.claims.evidence import Evidence
from quantbench.claims.marks import Figure, Judgement
from quantbench.claims.type_facts import TypeFacts, type_facts
from quantbench.core.errors import QuantbenchError
from quantbench.core.units import GB, format_bytes, format_limit, parse_bytes, short, times
from quantbench.metrics.energy import find_counter
from quantbench.models.footprint import dense_bytes
from quantbench.planning.planner import Planned
from quantbench.tables.lines import Line

ProseCheck = Callable[[Prose, Evidence], Judgement]


def _typed(judge: Callable[[Prose, Mapping[str, TypeFacts]], Judgement]) -> ProseCheck:
    """A rule on what libraries say about their number types."""

    def check(claim: Prose, _: Evidence) -> Judgement:
        try:
            facts = {each.name: each for each in type_facts()}
        except QuantbenchError as error:
            return Judgement(mark=m.NOT_HERE, why=str(error))
        missing = [facts[claim.facts[key]].missing for key in ("type", "than") if key in claim.facts]
        return Judgement(mark=m.NOT_HERE, why=missing[0]) if any(missing) else judge(claim, facts)

    return check


def _type_parts(claim: Prose, facts: Mapping[str, TypeFacts]) -> Judgement:
    """The bits of sign, exponent and mantissa."""
    mine = facts[claim.facts["type"]]
    parts = f"{mine.sign_bits}+{mine.exponent_bits}+{mine.mantissa_bits}"
    return Judgement(mark=_truth(parts == claim.facts["parts"]), planned=Figure(parts, parts))


def _same_range(claim: Prose, facts: Mapping[str, TypeFacts]) -> Judgement:
    """The same bits of exponent, hence the same smallest normal value and the same powers of two up to the largest."""
    mine, other = facts[claim.facts["type"]], facts[claim.facts["than"]]
    figure = Figure(mine.exponent_bits, f"{mine.exponent_bits} and {other.exponent_bits} bits")
    same = mine.exponent_bits == other.exponent_bits and mine.smallest_normal == other.smallest_normal
    why = f"largest {mine.maximum:.3g} and {other.maximum:.3g}, smallest normal {mine.smallest_normal:.3g} of both"
    return Judgement(mark=_truth(same), why=why if same else "", planned=figure)


def _wider_steps(claim: Prose, facts: Mapping[str, TypeFacts]) -> Judgement:
    """The step to the next larger value, at 1 and at 1000."""
    mine, other = facts[claim.facts["type"]], facts[claim.facts["than"]]
    near = (mine.step_at_1 or 0) / (other.step_at_1 or 1)
    far = (mine.step_at_1000 or 0) / (other.step_at_1000 or 1)
    why = f"at 1000 {mine.step_at_1000:g} and {other.step_at_1000:.2g}"
    return Judgement(mark=_truth(min(near, far) > 1), why=why, planned=Figure(near, f"{near:.0f}x"))


def _size_ratio(claim: Prose, _: Evidence) -> Judgement:
    """How many times smaller a model gets, compared with the ratio of the bits in the types' names."""
    than, variants = claim.facts["than"], claim.facts["variants"]
    weights = sizes.planned_weights(claim.facts["model"], [than, *variants])
    whole = weights[than].weight_bytes
    marks, ratios, notes = [], [], []
    wanted = [sizes.nominal_bits(than) / sizes.nominal_bits(variant) for variant in variants]
    for variant, ratio in zip(variants, wanted, strict=True):
        part = weights[variant].weight_bytes
        if not whole or not part:
            return Judgement(mark=m.NOT_YET, why=weights[variant].note)
        ratios.append(times(whole / part) + "x")
        marks.append(m.Amount(ratio, "", 0).mark(whole / part))
        if marks[-1] != m.HOLDS:
            notes.append(f"{variant}: {weights[variant].note}")
    types = f"{', '.join(variants)} should be {', '.join(f'{ratio:g}x' for ratio in wanted)}"
    text = ", ".join(ratios)
    return Judgement(mark=m.worst(marks), why="; ".join([types, *notes]), planned=Figure(text, text))


def _scaled_size(claim: Prose, _: Evidence) -> Judgement:
    """A size scaled by the ratio of the planned model that is nearest in size."""
    before, after = m.amount(claim.facts["before"]), m.amount(claim.facts["after"])

    def distance(name: str) -> float:
        return abs(dense_bytes(sizes.architecture_of(name), "fp32") - before.value * GB)

    model = min(claim.facts["models"], key=distance)
    variant, than = claim.facts["variant"], claim.facts["than"]
    weights = sizes.planned_weights(model, [variant, than])
    part, whole = weights[variant].weight_bytes, weights[than].weight_bytes
    if not part or not whole:
        return Judgement(mark=m.NOT_YET, why=weights[variant].note)
    found = before.value * part / whole
    why = f"{model}, the nearest in size, goes from {sizes.gigabytes(whole)} to {sizes.gigabytes(part)}"
    return Judgement(mark=after.mark(found), why=why, planned=Figure(found * GB, sizes.gigabytes(found * GB)))


def _smaller(claim: Prose, evidence: Evidence) -> Judgement:
    """Whether one variant's weights take less memory than another's, as planned and as loaded."""
    model, variant, than = (claim.facts[key] for key in ("model", "variant", "than"))
    weights = sizes.planned_weights(model, [variant, than])
    figures: list[tuple[float | None, float | None]] = [(weights[variant].weight_bytes, weights[than].weight_bytes)]
    measured = None
    for line, other in evidence.pairs(variant, than)[:1]:
        figures.append((line.number("weight_bytes"), other.number("weight_bytes")))
        measured = _versus(*figures[-1], f", {line.group.model}")
    known = [mine < theirs for mine, theirs in figures if mine is not None and theirs is not None]
    if not known:
        return Judgement(mark=m.NOT_YET, why=weights[variant].note, measured=measured)
    why = f"{variant} against {than} of {model}"
    if not all(known) and weights[variant].note:
        why += f"; {weights[variant].note}"
    return Judgement(mark=_truth(all(known)), why=why, planned=_versus(*figures[0]), measured=measured)


def _fits(claim: Prose, _: Evidence) -> Judgement:
    """Whether one of the text's variants fits a memory: weights, a KV cache of 4096 tokens and activations."""
    model, memory, variants = claim.facts["model"], parse_bytes(claim.facts["memory"]), claim.facts["variants"]
    plans = sizes.planned_on(model, tuple(sorted({variant.partition("/")[0] for variant in variants})), memory)
    named = [plans[variant] for variant in variants if variant in plans]
    if not named:
        notes = {weights.note for weights in sizes.planned_weights(model, variants).values()}
        return Judgement(mark=m.NOT_YET, why="; ".join(sorted(notes)))
    least = min(named, key=_peak)
    other = max((each for each in plans.values() if each.fits), key=_peak, default=None)
    why = f"{least.arithmetic}; {format_limit(memory)} are {sizes.gigabytes(memory)}"
    if not least.fits and other:
        why += f"; {other.variant} fits with {sizes.gigabytes(_peak(other))}"
    text = ", ".join(f"{each.variant} {sizes.gigabytes(_peak(each))}" for each in named)
    return Judgement(mark=_truth(bool(least.fits)), why=why, planned=Figure(_peak(least), text))


def _peak(planned: Planned) -> int:
    return planned.peak_bytes or 0


def _smaller_state_dict(claim: Prose, evidence: Evidence) -> Judgement:
    """How many times smaller a module's state dict gets."""
    for line, other in evidence.pairs(claim.facts["variant"], claim.facts["than"]):
        mine, theirs = line.number("state_dict_bytes"), other.number("state_dict_bytes")
        if line.group.model == claim.facts["model"] and mine and theirs:
            return Judgement(mark=_truth(mine < theirs), measured=Figure(theirs / mine, f"{times(theirs / mine)}x smaller"))
    return Judgement(mark=m.NOT_YET, why=f"quantbench run --model {claim.facts['model']}")


def _faster(claim: Prose, evidence: Evidence) -> Judgement:
    """Whether decoding is faster by enough to get another word."""
    scale = words().inference_speed

    def judge(line: Line, _: Line) -> tuple[bool, Figure] | None:
        ratio = line.speed_ratio
        return None if ratio is None else (scale.anchor(ratio) is not scale.anchors[0], Figure(ratio, f"{times(ratio)}x"))

    return _measured(claim, evidence, judge, "decode_tps")


def _less_energy(claim: Prose, evidence: Evidence) -> Judgement:
    """Joules per token."""

    def judge(line: Line, other: Line) -> tuple[bool, Figure] | None:
        mine, theirs = line.number("energy_per_token_j"), other.number("energy_per_token_j")
        return None if not mine or not theirs else (mine < theirs, Figure(mine / theirs, f"{times(mine / theirs)}x J/token"))

    found = _measured(claim, evidence, judge, "energy_per_token_j")
    counter = find_counter("cpu")
    if found.measured or found.mark == m.NOT_HERE or not isinstance(counter, str):
        return found
    return Judgement(mark=m.NOT_HERE, why=counter)


def _closer(claim: Prose, evidence: Evidence) -> Judgement:
    """Mean KLD against the reference."""

    def judge(line: Line, other: Line) -> tuple[bool, Figure] | None:
        mine, theirs = line.number("kld_mean"), other.number("kld_mean")
        return None if mine is None or theirs is None else (mine < theirs, Figure(mine, f"{short(mine)} vs {short(theirs)}"))

    return _measured(claim, evidence, judge, "kld_mean")


def _measured(
    claim: Prose, evidence: Evidence, judge: Callable[[Line, Line], tuple[bool, Figure] | None], column: str
) -> Judgement:
    """The verdict of comparing two measured variants; figures of an instrument check are only shown."""
    compared = f"{claim.facts['variant']} against {claim.facts['than']}"
    absent = ""
    for line, other in evidence.pairs(claim.facts["variant"], claim.facts["than"]):
        found = judge(line, other)
        if found is None:
            absent = absent or (line.row.null_reason(column) if line.row else "")
            continue
        figure = Figure(found[1].value, f"{found[1].text}, {line.group.model}")
        if line.group.instrument_check:
            return Judgement(mark=m.NOT_YET, why=f"{compared}; {line.group.model} is {INSTRUMENT_CHECK}", measured=figure)
        return Judgement(mark=_truth(found[0]), why=compared, measured=figure)
    return Judgement(mark=m.NOT_HERE if absent else m.NOT_YET, why=absent or compared)


def _runs_on_cpu(claim: Prose, evidence: Evidence) -> Judgement:
    """Whether the method's probe on the CPU worked."""
    line = evidence.of_method(claim.facts["variant"])
    measured = line is not None and line.row is not None and line.row.ok
    return capability("Yes", "cpu_support", line) if line and measured else Judgement(mark=m.NOT_YET)


def _before_version(claim: Prose, _: Evidence) -> Judgement:
    """Something that a library supported before some version, against the version installed."""
    package = claim.facts["package"]
    try:
        installed = version(package)
    except PackageNotFoundError:
        return Judgement(mark=m.NOT_HERE, why=f"{package} is not installed")
    gone = int(installed.partition(".")[0]) >= int(claim.facts["version"])
    figure = Figure(installed, f"{package} {installed}")
    return Judgement(mark=m.OUTDATED if gone else m.HOLDS, why=claim.facts["why"] if gone else "", measured=figure)


def _truth(holds: bool) -> str:
    return m.HOLDS if holds else m.FAILS


def _versus(mine: float | None, theirs: float | None, of: str = "") -> Figure | None:
    if mine is None or theirs is None:
        return None
    return Figure(mine, f"{format_bytes(mine)} vs {format_bytes(theirs)}{of}")


PROSE_CHECKS: Mapping[str, ProseCheck] = {
    "type_parts": _typed(_type_parts),
    "same_range": _typed(_same_range),
    "wider_steps": _typed(_wider_steps),
    "size_ratio": _size_ratio,
    "scaled_size": _scaled_size,
    "smaller": _smaller,
    "fits": _fits,
    "smaller_state_dict": _smaller_state_dict,
    "faster": _faster,
    "less_energy": _less_energy,
    "closer": _closer,
    "runs_on_cpu": _runs_on_cpu,
    "before_version": _before_version,
}
"""By the rule that ``claims.toml`` names for a claim."""
