"""A module without tokens: calls on seeded inputs, timed against the anchor's, and its outputs against the reference's."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from quantbench.core.errors import UnsupportedError
from quantbench.core.job import TRACE_FILE, Job, enter_stage
from quantbench.core.scenario import Spec, Variant
from quantbench.core.signals import Watched
from quantbench.core.trace import Calls, Trace
from quantbench.core.waiting import Rest, waiting
from quantbench.measuring.anchor import Anchor, choose
from quantbench.measuring.passes.courtesy import Courtesy
from quantbench.measuring.passes.device_context import make_context
from quantbench.measuring.passes.memory import before_loading, peak_during
from quantbench.measuring.passes.module import Caller, compare_outputs, measure_calls
from quantbench.measuring.subjects import check_device, import_seconds, settings_of, without_times
from quantbench.methods import METHODS, LoadedModule, Settings
from quantbench.models.checkpoint import require_unchanged

_NO_ANSWERS = "a module without tokens has no prompts and no answers"
_ABSENT = {
    "rounds": f"{_NO_ANSWERS}: see call_s",
    "answers": f"{_NO_ANSWERS}: see output_cosine",
    "columns": "a module without tokens predicts no next token: see output_cosine",
}


def measure(job: Job, folder: Path) -> None:
    """Measure the job's variant; write the trace of its one set of seeded inputs."""
    method = METHODS[job.variant.method]
    made = make_context(job.conditions.device)  # some imports would make it
    import_s = import_seconds(job)
    settings, spec, conditions, untimed = settings_of(job), job.spec, job.conditions, job.effort.untimed
    enter_stage(folder, "loading")
    before = before_loading(conditions.device, made)
    with ExitStack() as stack:
        courtesy = Courtesy(stack.enter_context(Rest(settings.threads)), job.root, conditions.device, untimed=bool(untimed))
        started = time.perf_counter()
        opened = stack.enter_context(method.open_module(spec, settings))
        load_s = time.perf_counter() - started
        loading = before.ended()
        courtesy.loaded()
        check_device(conditions.device, opened.facts, job.variant.name)
        weights = opened.memory()
        variant = Caller.seeded(opened, conditions.seed)
        enter_stage(folder, "memory")
        peak = peak_during(variant.round, loading)
        running = opened.memory().weight_bytes
        enter_stage(folder, "similarity")
        reference, absent = _open_reference(stack, spec, settings)
        distance = compare_outputs(opened, reference, conditions.seed) if reference else None
        chosen = None if untimed else choose(spec, settings)
        anchor = _open_anchor(stack, opened, chosen, job.variant) if chosen else None
        opposite = Caller.seeded(anchor, conditions.seed) if anchor else None
        enter_stage(folder, "latency")
        with courtesy.timed(Watched(name="calls")) as timing:
            calls: tuple[Calls, ...] = ()
            if not untimed:
                calls = measure_calls(variant, opposite, job.effort, after_round=timing.look, spoilt=timing.spoilt)
            rested = timing.rested()
        require_unchanged(job.checkpoint)
        trace = Trace(
            import_s=import_s,
            load_s=load_s,
            quantize_s=None,
            measured_s=time.perf_counter() - started,
            parameters=opened.parameters,
            weights=weights,
            weight_bytes_running=running,
            artifact_bytes=None,
            peak=peak,
            anchor=chosen.name if chosen else "",
            rounds=(),
            answers=(),
            columns=None,
            calls=calls,
            distance=distance,
            signals=timing.watch.signals,
            absent={**_ABSENT, **absent},
            facts={**opened.facts, "threads": str(settings.threads), "waiting": waiting(rested=rested)},
        )
        without_times(trace, untimed, "calls").save(folder / TRACE_FILE.format(0))


def _open_reference(stack: ExitStack, spec: Spec, settings: Settings) -> tuple[LoadedModule | None, dict[str, str]]:
    """The reference, opened in this process (separately even where it is the variant itself), or why there is none."""
    wanted = spec.reference()
    try:
        return stack.enter_context(METHODS[wanted.variant.method].open_module(wanted, settings)), {}
    except UnsupportedError as error:
        return None, {"distance": f"the reference {wanted.variant.name} cannot open this module: {error}"}


def _open_anchor(stack: ExitStack, variant: LoadedModule, anchor: Anchor, asked: Variant) -> LoadedModule:
    """The anchor, opened in this process; the variant itself where it is its own anchor."""
    if anchor.name == asked.name:
        return variant
    opened = stack.enter_context(METHODS[anchor.spec.variant.method].open_module(anchor.spec, anchor.settings))
    check_device(anchor.spec.conditions.device, opened.facts, f"the anchor {anchor.name}")
    return opened
