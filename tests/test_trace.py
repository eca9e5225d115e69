"""Traces and references survive their files unchanged."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.errors import QuantbenchError
from quantbench.core.signals import Found
from quantbench.core.trace import (
    Answer,
    Calls,
    Generation,
    LoadPoint,
    OutputDistance,
    PeakMemory,
    Probe,
    Reference,
    Round,
    Slicing,
    TopLogprobs,
    Trace,
    WeightMemory,
)
from quantbench.core.wire import made, read, write

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

seconds = st.floats(0, 1e6)
ids = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)
texts = st.text(st.characters(), max_size=12)  # lone surrogates included: model output is untrusted
counts = st.integers(0, 2**60)
answers = st.lists(st.builds(Answer, prompt=texts, prompt_tokens=ids, tokens=st.none() | ids, text=texts), max_size=3).map(
    tuple
)


def _tuples(of: SearchStrategy[object]) -> SearchStrategy[tuple[object, ...]]:
    return st.lists(of, max_size=3).map(tuple)


generations = st.builds(
    Generation,
    prompt=st.integers(0, 99),
    prompt_tokens=st.none() | counts,
    prefill_s=seconds,
    gaps_s=st.lists(seconds, max_size=4).map(tuple),
    e2e_s=seconds,
    tokens=counts,
)
traces = st.builds(
    Trace,
    slicing=st.none() | st.builds(Slicing, positions=counts, kld=st.none() | seconds, top1=st.none() | seconds),
    import_s=seconds,
    load_s=seconds,
    measured_s=seconds,
    quantize_s=st.none() | seconds,
    parameters=counts,
    weights=st.builds(WeightMemory, by_kind=st.dictionaries(texts, counts, max_size=3), footprint_bytes=st.none() | counts),
    weight_bytes_running=counts,
    artifact_bytes=st.none() | counts,
    peak=st.builds(
        PeakMemory,
        peak_rss_bytes=st.none() | counts,
        start_rss_bytes=st.none() | counts,
        load_peak_rss_bytes=st.none() | counts,
        rss_anon_bytes=st.none() | counts,
        rss_file_bytes=st.none() | counts,
        device_allocated_bytes=st.none() | counts,
        device_reserved_bytes=st.none() | counts,
        load_device_allocated_bytes=st.none() | counts,
        device_process_bytes=st.none() | counts,
        device_used_bytes=st.none() | counts,
        device_context_bytes=st.none() | counts,
        absent=st.dictionaries(texts, texts, max_size=2),
    ),
    anchor=texts,
    rounds=_tuples(st.builds(Round, index=counts, variant=_tuples(generations), anchor=_tuples(generations))),
    answers=answers,
    columns=st.none() | st.sampled_from([Path("columns-0.npz"), Path("/tmp/with space/columns-1.npz")]),  # noqa: S108 - only a name
    rounded=st.none() | st.just(Path("rounded-0.npz")),
    calls=_tuples(st.builds(Calls, variant=_tuples(seconds), anchor=_tuples(seconds))),
    distance=st.none() | st.builds(OutputDistance, inputs=counts, cosine=seconds, max_abs_error=seconds),
    load_points=_tuples(
        st.builds(
            LoadPoint, concurrency=counts, tokens=counts, seconds=seconds, ttft_s=st.lists(seconds, max_size=4).map(tuple)
        )
    ),
    top_logprobs=st.none()
    | st.builds(TopLogprobs, positions=counts, k=counts, top1=seconds, overlap=seconds, error=st.none() | seconds),
    memory_bandwidth_bps=st.none() | seconds,
    bytes_per_token=st.none() | counts,
    signals=st.dictionaries(texts, texts | st.dictionaries(texts, st.none() | seconds | texts, max_size=3), max_size=3),
    native=st.dictionaries(texts, seconds, max_size=3),
    probes=st.dictionaries(
        texts,
        st.builds(Probe, found=st.none() | st.booleans(), note=texts, figures=st.dictionaries(texts, seconds, max_size=2)),
        max_size=2,
    ),
    absent=st.dictionaries(texts, texts, max_size=3),
    facts=st.dictionaries(texts, texts, max_size=3),
)
references = st.builds(
    Reference,
    parameters=counts,
    checkpoint_dtype=texts,
    context_limit=st.none() | counts,
    prompt_tokens=_tuples(ids),
    continuations=_tuples(ids),
    answers=answers,
)


@given(traces)
def test_a_trace_reads_back_as_it_was_written(trace: Trace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace-0.json"
        trace.save(path)
        assert Trace.load(path) == trace


@given(references)
def test_a_reference_reads_back_as_it_was_written(reference: Reference) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference.json"
        reference.save(path)
        assert Reference.load(path) == reference


@given(st.dictionaries(texts, counts, max_size=6))
def test_weight_bytes_are_the_sum_over_all_kinds(by_kind: dict[str, int]) -> None:
    assert WeightMemory(by_kind=by_kind).weight_bytes == sum(by_kind.values())


@given(traces)
def test_the_file_is_plain_json_and_nothing_half_written_is_left(trace: Trace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace-0.json"
        trace.save(path)
        assert json.loads(path.read_text(encoding="ascii"))["anchor"] == trace.anchor
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_survives(figure: float, tmp_path: Path) -> None:
    generation = Generation(prompt=0, prompt_tokens=None, prefill_s=figure, gaps_s=(figure,), e2e_s=figure)
    write(tmp_path / "generation.json", generation)
    again = read(tmp_path / "generation.json", Generation)

    assert repr(again) == repr(generation)  # a NaN is not equal to itself


@given(traces, st.sampled_from(["anchor", "rounds", "weights", "peak"]))
def test_a_field_that_nobody_wrote_is_named(trace: Trace, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace-0.json"
        trace.save(path)
        body = json.loads(path.read_text())
        del body[name]
        path.write_text(json.dumps(body))
        with pytest.raises(QuantbenchError, match=f"required field missing @ it.{name}"):
            Trace.load(path)


@pytest.mark.parametrize("told", [None, 1, ["a"]])
def test_what_a_signal_tells_is_figures_or_a_sentence(told: object, tmp_path: Path) -> None:
    with pytest.raises(QuantbenchError, match=r"@ it\['mine'\]"):
        made({"mine": told}, dict[str, Found], "trace-0.json")
