"""A causal language model: memory, similarity and latency passes over every prompt set of the job, loaded once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle
from pathlib import Path

from quantbench.core.errors import QuantbenchError, UnsupportedError
from quantbench.core.job import REFERENCE_FOLDER, TRACE_FILE, Job, enter_stage
from quantbench.core.scenario import Variant
from quantbench.core.signals import Watched
from quantbench.core.trace import Answer, Decoding
from quantbench.core.waiting import Rest
from quantbench.measuring.anchor import Anchor, choose
from quantbench.measuring.passes.bandwidth import memory_bandwidth
from quantbench.measuring.passes.courtesy import Courtesy
from quantbench.measuring.passes.device_context import make_context
from quantbench.measuring.passes.latency import Contender, answer_tokens, measure_rounds, together
from quantbench.measuring.passes.memory import before_loading, measure_peak
from quantbench.measuring.passes.reference import make_reference
from quantbench.measuring.passes.rounding import measure_rounding
from quantbench.measuring.passes.similarity import answer_greedily, answers_of, score_columns
from quantbench.measuring.passes.slicing import measure_slicing
from quantbench.measuring.subjects import check_device, import_seconds, settings_of, without_times
from quantbench.measuring.subjects.assembled import Answered, Columns, Opened, assembled
from quantbench.measuring.subjects.prompts import Prompts, context_for, read_prompts, read_without_reference, timed_tokens
from quantbench.methods import METHODS, Batched, Decodes, LoadedModel, Untimed
from quantbench.models.checkpoint import require_unchanged
from quantbench.models.safetensors import weight_files
from quantbench.models.tokenizer import Decoder
from quantbench.runtimes import open_decoder, open_tokenizer, parts_of

_READ_BYTES = 1 << 22

_NO_ENERGY = "energy was not asked for: --no-energy was given, or the matrix says energy = false"
_BRIEF = "profile brief does not measure the memory bandwidth"
_TIMED = ("rounds", "anchor", "score_s", "energy")
"""Parts of a trace that are absent where nothing is timed."""


def make_references(job: Job, folder: Path) -> None:
    """Fill ``reference-N`` in ``folder`` for the job's N-th prompt set, with the job's own variant as the reference."""
    method = METHODS[job.variant.method]
    tokenizer = open_tokenizer(job.checkpoint)
    prompts = [read_without_reference(job, tokenizer, task) for task in job.tasks]
    context = context_for(job, prompts, tokenizer.context_limit)
    with method.open(job.spec, settings_of(job, context)) as model:
        check_device(job.conditions.device, model.facts, job.variant.name)
        for index, task in enumerate(job.tasks):
            out = folder / REFERENCE_FOLDER.format(index)
            if out.is_symlink() and not out.exists():  # a kept job is rerun: its artifact was moved to its final place
                out.unlink()
            out.mkdir(exist_ok=True)  # the runner may have linked it to its final place
            make_reference(model, tokenizer, checkpoint=job.checkpoint, task=task, conditions=job.conditions, folder=out)


def measure(job: Job, folder: Path) -> None:
    """Measure the job's variant; write a trace for each prompt set as soon as it is done."""
    method = METHODS[job.variant.method]
    made = make_context(job.conditions.device)  # some imports would make it
    import_s = import_seconds(job)
    prompts, context = read_prompts(job)
    settings = settings_of(job, context)
    artifact = method.prepare(job.spec, settings)
    bandwidth = _no_bandwidth(job) or memory_bandwidth(job.conditions.device, settings.threads, folder.parent)
    enter_stage(folder, "loading")
    _read_once(_files(artifact.path) if artifact else weight_files(job.checkpoint.path))
    before = before_loading(job.conditions.device, made)
    with ExitStack() as stack:
        rest = stack.enter_context(Rest(settings.threads))
        courtesy = Courtesy(rest, job.root, job.conditions.device, untimed=bool(job.effort.untimed))
        started = time.perf_counter()
        model = stack.enter_context(method.open(job.spec, settings))
        model.synchronize()
        load_s = time.perf_counter() - started
        loading = before.ended()
        job = _timed_or_not(job, model)
        untimed = job.effort.untimed
        courtesy.loaded(untimed=bool(untimed))
        require_unchanged(job.checkpoint)
        check_device(job.conditions.device, model.facts, job.variant.name)
        if settings.batch > 1 and not isinstance(model, Batched):
            raise UnsupportedError(f"{job.variant.name} answers one sequence at a time; use prompt sets without @N")
        weights = model.memory()
        enter_stage(folder, "memory")
        ways = [_decoding(job, model, each, context) for each in prompts]
        peaks = [measure_peak(model, each.ids, timed_tokens(job, each), loading, each.task.batch) for each in prompts]
        opened = Opened(
            model=model, artifact=artifact, import_s=import_s, load_s=load_s, started=started, weights=weights,
            running=model.memory(), bandwidth=bandwidth, context=context, threads=settings.threads,
            audited=method.audit(settings, job.original) if job.effort.besides else {},
        )  # fmt: skip
        enter_stage(folder, "scoring" if all(each.task.is_text for each in prompts) else "similarity")
        scored = [_score(job, model, each, folder, index, courtesy=courtesy) for index, each in enumerate(prompts)]
        chosen = None if untimed or all(each.task.is_text for each in prompts) else choose(job.spec, settings, job.original)
        anchor = _open_anchor(stack, model, chosen, job.variant) if chosen else None
        for index, (each, peak, columns) in enumerate(zip(prompts, peaks, scored, strict=True)):
            asked = each.answered(job.conditions)
            opposite = None
            unlike = ""
            if chosen and anchor and not isinstance(anchor, str):
                opposite = Contender(anchor, chosen.prompts(asked.ids), each.task.batch)
                unlike = "" if anchor is model else _unlike(job, ways[index], opposite, chosen.name, context)
                opposite = None if unlike else opposite
            enter_stage(folder, "latency")
            answered = _answer(job, asked, Contender(model, asked.ids, each.task.batch), opposite, context, courtesy=courtesy)
            trace = assembled(job, each, opened, answered, peak=peak, columns=columns, anchor=chosen.name if chosen else "")
            trace = replace(trace, decoding=ways[index])
            lacking = {"anchor": anchor if isinstance(anchor, str) else unlike} if isinstance(anchor, str) or unlike else {}
            require_unchanged(job.checkpoint)  # mapped weights are read from the file as long as the model runs
            trace = replace(trace, absent={**trace.absent, **lacking})
            without_times(trace, untimed, *_TIMED).save(folder / TRACE_FILE.format(index))


def _timed_or_not(job: Job, model: LoadedModel) -> Job:
    """The job; without timings where the opened model says why it must not be timed."""
    why = model.untimed if isinstance(model, Untimed) else ""
    return replace(job, effort=replace(job.effort, untimed=job.effort.untimed or why))


def _no_bandwidth(job: Job) -> str:
    """Why the memory bandwidth is not measured; empty where it is."""
    return job.effort.untimed or ("" if job.effort.besides else _BRIEF)


def _decoding(job: Job, model: LoadedModel, prompts: Prompts, context: int) -> Decoding | None:
    """Take the way to decode that was asked for, on the first prompt; None for a text, and where the runtime has its own."""
    if prompts.task.is_text or job.effort.untimed or not isinstance(model, Decodes):
        return None
    first = together(prompts.answered(job.conditions).ids[0], prompts.task.batch)
    return model.decode_by(job.conditions.decode_path, first, job.conditions.output_tokens, context)


def _unlike(job: Job, way: Decoding | None, anchor: Contender, name: str, context: int) -> str:
    """Why the anchor cannot be timed beside a variant that decodes in this way; empty where it decodes in the same."""
    if way is None or not isinstance(anchor.model, Decodes):
        return ""
    first = together(anchor.prompts[0], anchor.batch)
    found = anchor.model.decode_by(way.path, first, job.conditions.output_tokens, context)
    if found.path == way.path:
        return ""
    return f"the anchor {name} decodes by {found.path} and the variant by {way.path}, so no ratio is taken ({found.reason})"


def _answer(
    job: Job, prompts: Prompts, contender: Contender, opposite: Contender | None, context: int, *, courtesy: Courtesy
) -> Answered:
    """The latency pass, unless nothing is to be timed, and the greedy answers; neither for a text."""
    if prompts.task.is_text:
        return Answered()
    timed = Answered() if job.effort.untimed else _time(job, contender, opposite, context, courtesy=courtesy)
    if job.checkpoint.random_weights:
        return timed
    decoder = open_decoder(job.model, prompts.task.reference)
    return replace(timed, answers=_answers(contender, prompts, decoder, job.conditions.answer_tokens))


def _time(job: Job, contender: Contender, opposite: Contender | None, context: int, *, courtesy: Courtesy) -> Answered:
    """The latency pass."""
    model, batch = contender.model, contender.batch

    def answers_in_turn() -> Iterator[Iterator[int]]:
        for prompt in cycle(contender.prompts):
            yield (batch for _ in answer_tokens(model, prompt, context - len(prompt), batch))

    asked = job.effort.energy
    about = Watched(
        name="latency", device=model.facts.get("device", ""), answers=answers_in_turn if asked else None,
        no_answers="" if asked else _NO_ENERGY, synchronize=model.synchronize,
    )  # fmt: skip
    with courtesy.timed(about) as timing:
        length = job.conditions.output_tokens
        rounds = measure_rounds(contender, opposite, length, job.effort, after_round=timing.look, spoilt=timing.spoilt)
        rested = timing.rested()
    return Answered(rounds=rounds, signals=timing.watch.signals, rested=rested)


def _files(artifact: Path) -> list[Path]:
    """The files of a folder, or all parts of a GGUF file."""
    if artifact.is_dir():
        return [each for each in artifact.rglob("*") if each.is_file()]
    return parts_of(artifact)


def _read_once(files: Sequence[Path]) -> None:
    """Bring files into the page cache, so that ``load_s`` does not time the disk."""
    for path in files:
        with path.open("rb", buffering=0) as stream:
            while stream.read(_READ_BYTES):
                pass


def _open_anchor(stack: ExitStack, model: LoadedModel, anchor: Anchor, variant: Variant) -> LoadedModel | str:
    """The anchor, opened in this process; the model itself where it is its own anchor. A string says why it failed to open."""
    if anchor.name == variant.name:
        return model
    try:
        opened = stack.enter_context(METHODS[anchor.spec.variant.method].open(anchor.spec, anchor.settings))
    except (QuantbenchError, MemoryError, RuntimeError) as error:  # an anchor is optional: the variant's own figures are kept
        first = (str(error).strip().splitlines() or ["no message"])[0]
        return f"the anchor {anchor.name} could not be opened beside the variant: {first}"
    check_device(anchor.spec.conditions.device, opened.facts, f"the anchor {anchor.name}")
    return opened


def _score(job: Job, model: LoadedModel, prompts: Prompts, folder: Path, index: int, *, courtesy: Courtesy) -> Columns | None:
    if not prompts.scored:
        return None
    threads, path = settings_of(job).threads, folder / f"columns-{index}.npz"
    reference = prompts.task.reference
    with courtesy.timed(Watched(name="scoring", device=model.facts.get("device", ""))) as timing:
        seconds = score_columns(model, prompts.scored, reference, path, threads=threads, after_each=timing.look)
        rested = timing.rested()
    slicing = measure_slicing(model, prompts.scored, reference, path, folder / f"slicing-{index}.npz", threads=threads)
    rounded: Path | str | None = None
    if job.variant.control:
        dtype, out = prompts.reference.checkpoint_dtype if prompts.reference else "", folder / f"rounded-{index}.npz"
        rounded = measure_rounding(model, prompts.scored, reference, dtype, out, threads=threads)
    return Columns(path, seconds, slicing, rounded, timing.watch.signals, rested)


def _answers(contender: Contender, prompts: Prompts, tokenizer: Decoder, length: int) -> tuple[Answer, ...]:
    """Greedy answers of ``length`` tokens: the timed ones, if they are long enough and were not answered in a batch."""
    asked = list(zip(prompts.task.prompts, prompts.ids, strict=True))
    said = [contender.last_answers.get(index, ())[:length] for index in range(len(asked))]
    if contender.batch > 1 or any(len(each) < length for each in said):
        return answer_greedily(contender.model, asked, length, tokenizer)
    return answers_of(said, asked, tokenizer)
