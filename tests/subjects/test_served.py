"""The served subject: counts, levels and comparisons against what a scripted endpoint said, and the real server end to end."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.conversation import Message, transcript
from quantbench.core.errors import ModelError
from quantbench.core.job import TRACE_FILE, Checkpoint, Job, Task
from quantbench.core.record import Missing
from quantbench.core.scenario import Conditions, Effort, Spec, Variant
from quantbench.core.trace import LoadPoint, Reference, TopLogprobs, Trace
from quantbench.measuring.passes.similarity import LOGPROBS_FILE, REFERENCE_FILE
from quantbench.measuring.subjects import causal, served
from quantbench.measuring.subjects.prompts import Prompts
from quantbench.measuring.subjects.served import Client, levels, measure
from quantbench.measuring.subjects.top_logprobs import POSITIONS, UNREACHABLE, Place, compare_top_tokens, summarize
from quantbench.methods import METHODS, Artifact, Settings, StreamDroppedError, Streamed
from quantbench.metrics import evaluate
from quantbench.models.checkpoint import resolve

URL = "http://localhost:1/v1"
PROMPTS = ("one", "two", "three")
EFFORT = Effort(min_rounds=2, max_rounds=2, budget_s=0.0)


@dataclass
class Scripted:
    """An endpoint that streams the prompt's letters; ``together`` makes that many answers wait for each other."""

    usage: bool = False
    pieces: Callable[[str], tuple[str, ...]] = tuple
    timings: Mapping[str, float] = field(default_factory=dict)
    top: Mapping[str, float] | None = None
    broken: bool = False
    together: threading.Barrier | None = None
    asked: list[tuple[str, int]] = field(default_factory=list)
    scored: list[str] = field(default_factory=list)
    artifact: Artifact | None = None
    pid: int | None = None
    obeys: bool = False
    own: Mapping[str, float] = field(default_factory=dict)

    @property
    def facts(self) -> Mapping[str, str]:
        return {"kernel": "scripted"}

    def answer(self, prompt: str, limit: int, *, full_length: bool = False) -> Streamed:
        if self.broken:
            raise ModelError(f"server {URL} dropped the stream")
        if self.together is not None:
            self.together.wait(timeout=20)
        self.asked.append((prompt, limit))
        pieces = self.pieces(prompt)[: limit if self.obeys else None]
        arrivals = tuple(0.5 + 0.25 * number for number in range(len(pieces)))
        counts = (2 * len(pieces), 40) if self.usage else (None, None)
        return Streamed(pieces=pieces, arrivals_s=arrivals, tokens=counts[0], prompt_tokens=counts[1])

    def timed(self, prompt: str, limit: int) -> Streamed:
        return replace(self.answer(prompt, limit, full_length=True), native=self.own)

    def top_tokens(self, prompt: str, k: int) -> Mapping[str, float] | None:
        self.scored.append(prompt)
        return self.top

    def native(self, prompt: str, limit: int) -> Mapping[str, float]:
        return self.timings


class Letters:
    """A tokenizer: BOS is 0, every letter its code, ``ab`` together 1000 when a text is encoded."""

    ends: frozenset[int] = frozenset()
    context_limit = None

    def encode(self, text: str) -> list[int]:
        return [0, *(1000 if each == "\0" else ord(each) for each in text.replace("ab", "\0"))]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join("ab" if token == 1000 else chr(token) for token in tokens if token)


def client(endpoint: Scripted, *, tokenizer: Letters | None) -> Client:
    task = Task(prompts_name="p", prompts=PROMPTS, reference=None)
    ids = tuple(tuple(tokenizer.encode(text)) if tokenizer else () for text in PROMPTS)
    return Client(endpoint, Prompts(task=task, ids=ids, reference=None), tokenizer)


class TestCounting:
    def test_the_servers_counts_come_first(self) -> None:
        counted = client(Scripted(usage=True), tokenizer=Letters())
        generation = counted.timed(2, 16)
        assert (generation.tokens, generation.prompt_tokens) == (10, 40)
        assert counted.counted_by == {"server"}

    def test_then_the_local_tokenizers_never_above_what_was_asked(self) -> None:
        counted = client(Scripted(pieces=lambda _: ("a", "b", "ab")), tokenizer=Letters())
        generation = counted.timed(0, 16)
        assert (generation.tokens, generation.prompt_tokens) == (2, 4)
        assert counted.timed(0, 1).tokens == 1
        assert counted.counted_by == {"tokenizer"}

    def test_then_events(self) -> None:
        counted = client(Scripted(), tokenizer=None)
        generation = counted.timed(2, 16)
        assert (generation.tokens, generation.prompt_tokens) == (5, None)
        assert counted.counted_by == {"events"}

    def test_times_are_those_of_the_events(self) -> None:
        generation = client(Scripted(usage=True), tokenizer=None).timed(2, 16)
        assert (generation.prompt, generation.prefill_s, generation.e2e_s) == (2, 0.5, 1.5)
        assert generation.gaps_s == (0.25,) * 4

    def test_an_empty_answer_is_one_token(self) -> None:
        generation = client(Scripted(pieces=lambda _: ("",)), tokenizer=Letters()).timed(0, 16)
        assert (generation.tokens, generation.gaps_s, generation.e2e_s) == (1, (), 0.5)


@given(st.integers(1, 300))
def test_levels_double_up_to_the_most(most: int) -> None:
    found = levels(most)
    assert found[0] == 1
    assert found[-1] == most
    assert all(one < other <= 2 * one for one, other in pairwise(found))
    assert all(math.log2(each).is_integer() for each in found[:-1])


def job(folder: Path, model: Checkpoint, conditions: Conditions, *references: Path) -> Job:
    made = Job(
        kind="measure",
        checkpoint=model,
        variant=Variant(method="server", precision="as-served"),
        conditions=conditions,
        effort=EFFORT,
        tasks=tuple(Task(prompts_name="p", prompts=PROMPTS, reference=each) for each in references)
        or (Task(prompts_name="p", prompts=PROMPTS, reference=None),),
    )
    made.save(folder)
    return made


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """What the method opens, whatever it is asked for."""
    scripted = Scripted()

    @contextmanager
    def opened(spec: Spec, settings: Settings) -> Iterator[Scripted]:
        yield scripted

    monkeypatch.setattr(METHODS["server"], "opener", opened)
    return scripted


CONDITIONS = Conditions(concurrency=3, output_tokens=4, answer_tokens=6, continuation_tokens=4)


def test_a_conversation_is_sent_as_the_text_that_the_template_makes(endpoint: Scripted, chatty: Path, tmp_path: Path) -> None:
    """Without the beginning of sequence, which servers put in front by themselves; readers see who said what."""
    talk = (Message("system", "Be brief."), Message("user", "Hello"))
    task = Task(prompts_name="talk", prompts=(transcript(talk),), conversations=(talk,), reference=None)
    asked = replace(job(tmp_path, resolve(str(chatty)), CONDITIONS), tasks=(task,))
    measure(asked, tmp_path)
    trace = Trace.load(tmp_path / TRACE_FILE.format(0))
    assert {prompt for prompt, _ in endpoint.asked} == {"SYSTEM: Be brief.</s>USER: Hello</s> A:"}
    assert [answer.prompt for answer in trace.answers] == ["system: Be brief.\nuser: Hello"]
    assert trace.answers[0].prompt_tokens[0] == 1
    assert trace.facts["token_count"] == "tokenizer"


class TestUrlModel:
    def test_the_trace_holds_what_was_seen_and_why_the_rest_was_not(self, endpoint: Scripted, tmp_path: Path) -> None:
        endpoint.usage = True
        endpoint.timings = {"tokens": 4, "decode_s": 0.5, "prompt_tokens": 2, "prefill_s": 0.25}
        measure(job(tmp_path, resolve(URL), CONDITIONS), tmp_path)
        trace = Trace.load(tmp_path / TRACE_FILE.format(0))

        assert [(answer.text, answer.tokens) for answer in trace.answers] == [(text, None) for text in PROMPTS]
        assert [[answer.prompt for answer in each.variant] for each in trace.rounds] == [[0], [1], [2]]
        assert [point.concurrency for point in trace.load_points] == [1, 2, 3]
        assert [len(point.ttft_s) for point in trace.load_points] == [1, 2, 3]
        assert [point.tokens for point in trace.load_points] == [2 * 3, 2 * 6, 2 * 11]
        assert all(point.seconds >= 1.0 for point in trace.load_points)
        assert trace.native == {"tokens": 12, "decode_s": 1.5, "prompt_tokens": 6, "prefill_s": 0.75}
        assert (trace.facts["kernel"], trace.facts["token_count"]) == ("scripted", "server")
        limits = {limit for _, limit in endpoint.asked}
        assert limits == {CONDITIONS.output_tokens, CONDITIONS.output_tokens // 2, CONDITIONS.answer_tokens}
        values = evaluate(trace, None)
        assert (values["native_decode_tps"], values["decode_tps"]) == (8.0, pytest.approx((22 - 3 * 2) / (8 * 0.25)))
        for name in ("weight_bytes", "peak_rss_bytes"):
            assert values[name] == Missing("a server's memory cannot be seen from here")
        for name in ("exact_match", "chrf", "top1_served"):
            reason = "the model is known only by its server's URL, so there is no reference to compare with"
            assert values[name] == Missing(reason)
        assert isinstance(values["load_s"], Missing)

    def test_its_own_timings_are_those_of_the_answers_timed_alone(self, endpoint: Scripted, tmp_path: Path) -> None:
        endpoint.own = {"tokens": 3, "decode_s": 0.5, "prompt_tokens": 2, "prefill_s": 0.25}
        measure(job(tmp_path, resolve(URL), CONDITIONS), tmp_path)
        trace = Trace.load(tmp_path / TRACE_FILE.format(0))
        count = sum(len(each.variant) for each in trace.rounds)
        assert trace.native == {name: count * figure for name, figure in endpoint.own.items()}

    def test_every_timed_answer_has_one_half_as_long(self, endpoint: Scripted, tmp_path: Path) -> None:
        """Each token takes a quarter of a second, so that is what the difference says, whatever came before the first."""
        endpoint.obeys = True
        measure(job(tmp_path, resolve(URL), replace(CONDITIONS, output_tokens=3)), tmp_path)
        trace = Trace.load(tmp_path / TRACE_FILE.format(0))
        answers = [answer for each in trace.rounds for answer in each.variant]
        assert [(each.prompt, each.tokens) for each in trace.halves] == [(each.prompt, 1) for each in answers]
        assert evaluate(trace, None)["tpot_difference_s"] == pytest.approx(0.25)

    def test_without_counts_a_rate_of_prompts_is_null(self, endpoint: Scripted, tmp_path: Path) -> None:
        measure(job(tmp_path, resolve(URL), CONDITIONS), tmp_path)
        trace = Trace.load(tmp_path / TRACE_FILE.format(0))
        values = evaluate(trace, None)
        assert isinstance(values["prefill_tps"], Missing)
        assert values["decode_tps"] == pytest.approx(4.0)
        assert isinstance(values["native_decode_tps"], Missing)
        assert trace.facts["token_count"] == "events"

    def test_requests_of_one_level_are_under_way_together(self, endpoint: Scripted) -> None:
        """Each answer waits for two others: one after the other, none would ever come."""
        endpoint.together = threading.Barrier(3)
        point = served.burst(client(endpoint, tokenizer=None), 3, 4)
        assert (point.concurrency, point.tokens) == (3, 11)
        assert sorted(prompt for prompt, _ in endpoint.asked) == sorted(PROMPTS)

    def test_more_requests_than_prompts_go_round(self, endpoint: Scripted) -> None:
        point = served.burst(client(endpoint, tokenizer=None), 7, 4)
        assert point.tokens == sum(len(PROMPTS[number % 3]) for number in range(7))

    @pytest.mark.parametrize(
        ("error", "hint"),
        [(StreamDroppedError("server dropped the stream"), True), (ModelError("server failed (500)"), False)],
    )
    def test_a_failure_under_load_costs_the_figures_of_concurrency_only(
        self, error: ModelError, hint: bool, endpoint: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = served.burst

        def burst(client: Client, concurrency: int, limit: int) -> LoadPoint:
            if concurrency > 1:
                raise error
            return real(client, concurrency, limit)

        monkeypatch.setattr(served, "burst", burst)
        measure(job(tmp_path, resolve(URL), CONDITIONS), tmp_path)
        values = evaluate(Trace.load(tmp_path / TRACE_FILE.format(0)), None)
        assert values["decode_tps"] == pytest.approx(4.0)
        assert json.loads(str(values["concurrency_tps"])).keys() == {"1"}
        for name in ("concurrency", "concurrent_tps", "concurrent_ttft_s"):
            missing = values[name]
            assert isinstance(missing, Missing)
            assert missing.reason.startswith(f"with 2 requests at once: {error}")
            assert ("--interrupt_requests" in missing.reason) == hint

    def test_absurd_timings_of_its_own_are_no_figure_and_no_failure(
        self, endpoint: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(self: Scripted, prompt: str, limit: int) -> Mapping[str, float]:
            raise ModelError("its timings cannot be used")

        monkeypatch.setattr(Scripted, "native", refuse)
        measure(job(tmp_path, resolve(URL), CONDITIONS), tmp_path)
        values = evaluate(Trace.load(tmp_path / TRACE_FILE.format(0)), None)
        assert values["native_decode_tps"] == Missing("its timings cannot be used")
        assert values["decode_tps"] == pytest.approx(4.0)

    def test_where_nothing_is_to_be_timed_it_is_asked_for_its_answers_only(self, endpoint: Scripted, tmp_path: Path) -> None:
        why = "other tests run at the same time"
        measure(replace(job(tmp_path, resolve(URL), CONDITIONS), effort=replace(EFFORT, untimed=why)), tmp_path)
        assert endpoint.asked == [(prompt, CONDITIONS.answer_tokens) for prompt in PROMPTS]
        trace = Trace.load(tmp_path / TRACE_FILE.format(0))
        assert [answer.text for answer in trace.answers] == list(PROMPTS)
        values = evaluate(trace, None)
        for name in ("decode_tps", "ttft_s", "itl_s", "concurrent_tps", "concurrency_tps", "native_decode_tps", "import_s"):
            assert values[name] == Missing(why)

    def test_a_failure_under_load_is_the_bursts_failure(self, endpoint: Scripted) -> None:
        endpoint.broken = True
        with pytest.raises(ModelError, match="dropped the stream"):
            served.burst(client(endpoint, tokenizer=None), 4, 4)


class TestSummary:
    def test_by_hand(self) -> None:
        places = [
            Place([(" a", -0.5), (" b", -1.0)], {" a": -0.7, " b": -1.0}),
            Place([(" a", -0.5), (" b", -1.0)], {" c": -0.1, " b": -1.4}),
        ]
        found = summarize(places)
        assert found is not None
        assert (found.positions, found.k, found.top1) == (2, 2, 0.5)
        assert found.overlap == pytest.approx((1 + 0.5) / 2)
        assert found.error == pytest.approx((0.2 + 0 + 0.4) / 3)
        p, q = np.exp([-0.5, -1.0]), np.exp([-0.7, -1.0])
        first = np.sum(p * np.log(p / q)) + (1 - p.sum()) * np.log((1 - p.sum()) / (1 - q.sum()))
        one, other = np.exp(-1.0), np.exp(-1.4)  # the second place has one token in common
        second = one * np.log(one / other) + (1 - one) * np.log((1 - one) / (1 - other))
        assert found.kld == pytest.approx((first + second) / 2)
        assert found.tail == pytest.approx((1 - p.sum() + 1 - one) / 2)

    def test_a_server_that_names_fewer_is_asked_no_more(self) -> None:
        five = [(f" {letter}", -float(number)) for number, letter in enumerate("abcde")]
        assert summarize([Place(five, {" a": 0.0})]) == TopLogprobs(
            positions=1, k=1, top1=1.0, overlap=1.0, error=0.0, kld=0.0, tail=0.0
        )

    def test_a_tail_that_the_server_leaves_none_is_one_in_a_million(self) -> None:
        found = summarize([Place([(" a", math.log(0.9)), (" b", math.log(0.1))], {" a": 0.0})])
        assert found is not None
        assert found.kld == pytest.approx(0.9 * math.log(0.9) + 0.1 * math.log(0.1 / 1e-6))
        assert found.tail == pytest.approx(0.1)

    @given(st.lists(st.floats(-4, 4), min_size=6, max_size=12), st.integers(0, 99))
    def test_the_divergence_is_never_above_that_of_the_whole_vocabulary(self, logits: list[float], seed: int) -> None:
        p = np.exp(logits) / np.exp(logits).sum()
        other = np.exp(np.random.default_rng(seed).normal(0, 2, len(logits)))
        q = other / other.sum()
        named = np.argsort(q)[::-1][:5]
        ours = [(f" {token}", float(np.log(p[token]))) for token in np.argsort(p)[::-1]]
        found = summarize([Place(ours, {f" {token}": float(np.log(q[token])) for token in named})])
        assert found is not None
        assert 0 <= found.kld <= np.sum(p * np.log(p / q)) + 1e-9

    def test_spaces_count_only_where_the_server_has_them(self) -> None:
        ours = [(" a", -0.5), ("b", -1.0)]
        bare = summarize([Place(ours, {"a": -0.5, "b": -1.0})])
        tail = pytest.approx(1 - math.exp(-0.5) - math.exp(-1.0))
        assert bare == TopLogprobs(positions=1, k=2, top1=1.0, overlap=1.0, error=0.0, kld=0.0, tail=tail)
        spaced = summarize([Place(ours, {" b": -0.5, "a": -1.0})])
        assert spaced == TopLogprobs(positions=1, k=2, top1=0.0, overlap=0.0, error=None, kld=0.0, tail=1.0)

    def test_tokens_without_a_text_of_their_own_are_left_out(self) -> None:
        assert summarize([Place([("", -0.1), (" a", -3.0)], {"</s>": -0.1, " a": -3.0})]) is None
        found = summarize([Place([(" a", -0.1), ("", -3.0)], {" a": -0.1, "\ufffd": -3.0})])
        tail = pytest.approx(1 - math.exp(-0.1))
        assert found == TopLogprobs(positions=1, k=2, top1=1.0, overlap=1.0, error=0.0, kld=0.0, tail=tail)
        assert summarize([]) is None


class TestTeacherForcing:
    @pytest.fixture
    def reference(self, tmp_path: Path) -> Reference:
        """Two prompts; row by row, the reference's likeliest token is the letter of that row."""
        continuations = (tuple(map(ord, "xyzw")), tuple(map(ord, "abuv")))
        rows = np.full((8, 200), -9.0, dtype=np.float32)
        for row, letter in enumerate("ABCDEFGH"):
            rows[row, [ord(letter), ord("q")]] = -0.5, -1.5
        np.save(tmp_path / LOGPROBS_FILE, rows)
        ids = tuple(tuple(Letters().encode(text)) for text in ("p", "r"))
        return Reference(
            parameters=1, checkpoint_dtype="", context_limit=None, prompt_tokens=ids, continuations=continuations, answers=()
        )

    def test_only_places_that_text_can_reach_are_asked(self, reference: Reference, tmp_path: Path) -> None:
        """``a`` then ``b`` were two tokens, which a text cannot say: what comes after is not asked."""
        endpoint = Scripted(top={"A": -0.5, "q": -1.0})
        found = compare_top_tokens(endpoint, Letters(), ("p", "r"), reference, tmp_path)
        assert endpoint.scored == ["p", "px", "pxy", "pxyz", "r", "ra"]
        assert isinstance(found, TopLogprobs)
        assert (found.positions, found.k) == (6, 2)
        assert found.top1 == pytest.approx(1 / 6)
        assert found.overlap == pytest.approx((1 + 5 * 0.5) / 6)
        assert found.error == pytest.approx((6 * 0.5 + 0.0) / 7)

    def test_each_place_meets_its_own_row(self, reference: Reference, tmp_path: Path) -> None:
        class Right(Scripted):
            def top_tokens(self, prompt: str, k: int) -> Mapping[str, float] | None:
                letter = dict(zip(("p", "px", "pxy", "pxyz", "r", "ra"), "ABCDEF", strict=True))[prompt]
                return {letter: -0.5, "q": -1.5}

        found = compare_top_tokens(Right(), Letters(), ("p", "r"), reference, tmp_path)
        assert isinstance(found, TopLogprobs)
        assert (found.positions, found.k, found.top1, found.overlap, found.error) == (6, 2, 1.0, 1.0, 0.0)
        assert found.kld == pytest.approx(0.0, abs=1e-6)  # the reference is stored in float32
        assert found.tail == pytest.approx(1 - math.exp(-0.5) - math.exp(-1.5), abs=1e-6)

    def test_a_long_continuation_is_asked_a_few_times(self, reference: Reference, tmp_path: Path) -> None:
        np.save(tmp_path / LOGPROBS_FILE, np.zeros((20, 200), dtype=np.float32))
        long = replace(reference, prompt_tokens=reference.prompt_tokens[:1], continuations=(tuple(map(ord, "x" * 20)),))
        endpoint = Scripted(top={"A": -0.5})
        compare_top_tokens(endpoint, Letters(), ("p",), long, tmp_path)
        assert len(endpoint.scored) == POSITIONS

    def test_without_log_probabilities_or_places_the_reason_is_given(self, reference: Reference, tmp_path: Path) -> None:
        silent = Scripted(top=None)
        assert compare_top_tokens(silent, Letters(), ("p", "r"), reference, tmp_path) == "the server gives no log-probabilities"
        assert len(silent.scored) == 1
        lost = replace(reference, prompt_tokens=((0, ord("a"), ord("b")), (0, ord("a"), ord("b"))))
        assert compare_top_tokens(Scripted(top={"A": -0.5}), Letters(), ("ab", "ab"), lost, tmp_path) == UNREACHABLE


@pytest.mark.usefixtures("artifacts")
def test_the_real_server_on_the_canary(tmp_path: Path) -> None:
    """llama-cpp-python's server on Q8_0 says nearly what torch in float32 says, and every figure is there or has a reason."""
    prompts = ("The function returns", "def parse(self, text):")
    conditions = Conditions(
        server="gguf/q8_0", concurrency=2, output_tokens=4, answer_tokens=8, continuation_tokens=8, threads=1
    )
    made = job(tmp_path, resolve("canary"), conditions)
    task = Task(prompts_name="p", prompts=prompts, reference=None)
    causal.make_references(replace(made, variant=Variant(method="torch", precision="fp32"), tasks=(task,)), tmp_path)
    reference_folder = tmp_path / "reference-0"
    measure(replace(made, tasks=(replace(task, reference=reference_folder),)), tmp_path)

    trace = Trace.load(tmp_path / TRACE_FILE.format(0))
    reference = Reference.load(reference_folder / REFERENCE_FILE)
    values = evaluate(trace, reference)
    assert values["exact_match"] == 1.0
    assert values["top1_served"] == 1.0
    top = trace.top_logprobs
    assert top is not None
    assert len(prompts) <= top.positions <= POSITIONS * len(prompts)
    assert top.k == 5
    assert top.overlap > 0.8
    assert top.error is not None
    assert 0 < top.error < 0.1  # Q8_0 is close and is not float32
    assert [point.concurrency for point in trace.load_points] == [1, 2]
    timed = [answer for each in trace.rounds for answer in each.variant]
    assert [answer.tokens for answer in timed] == [4] * len(timed)
    assert {answer.prompt: answer.prompt_tokens for answer in timed} == {
        number: len(ids) for number, ids in enumerate(reference.prompt_tokens)
    }
    assert trace.artifact_bytes is not None
    assert json.loads(str(values["concurrency_tps"])).keys() == {"1", "2"}
