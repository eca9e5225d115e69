"""A served model: streamed answers, alone and under concurrency, and its likeliest tokens against the reference's.

Nothing is known about it but what it sends: text with arrival times, at best token counts and log-probabilities.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from threading import Barrier

from quantbench.core.errors import ModelError
from quantbench.core.job import TRACE_FILE, Job, Task, enter_stage
from quantbench.core.scenario import Conditions
from quantbench.core.signals import Found, Watched
from quantbench.core.trace import Answer, Generation, LoadPoint, Round, ServerMemory, TopLogprobs, Trace
from quantbench.measuring.passes.rounds import rotation, until_steady
from quantbench.measuring.passes.server_memory import watched
from quantbench.measuring.signals import Watch
from quantbench.measuring.subjects import import_seconds, settings_of, without_times
from quantbench.measuring.subjects.prompts import Prompts, read_prompts
from quantbench.measuring.subjects.top_logprobs import compare_top_tokens
from quantbench.methods import METHODS, Endpoint, StreamDroppedError, Streamed
from quantbench.models.tokenizer import Tokenizer, completion_texts
from quantbench.runtimes import open_tokenizer

_UNSEEN = "a server's memory cannot be seen from here"
_PARTS = "of a server only the memory of all its processes is seen: see server_pss_bytes and server_device_bytes"
_NO_FILES = "the model is known only by its server's URL, so there is no reference to compare with"
_INTERRUPTS = (
    "; llama-cpp-python's server breaks off an answer when another request arrives, unless it is started with "
    "--interrupt_requests false"
)
_ABSENT = {
    "weights": _UNSEEN,
    "peak": _UNSEEN,
    "load_s": "the server had loaded the model before the first request",
    "quantize_s": "the served model was quantized elsewhere",
    "columns": "a server gives no logits over the whole vocabulary: see topk_kld",
    "anchor": "the served model runs in another process, so no anchor can alternate with it",
    "native": "the server reports no timings of its own: it is neither llama-server, vLLM nor Ollama",
    "server_memory": _UNSEEN,
}


@dataclass(slots=True)
class Client:
    """The endpoint with one prompt set; counts tokens, and keeps in ``counted_by`` what they were counted by.

    ``native`` sums up the server's own timings of the answers that were timed alone.
    """

    endpoint: Endpoint
    prompts: Prompts
    tokenizer: Tokenizer | None
    counted_by: set[str] = field(default_factory=set)
    native: dict[str, float] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """The prompt set as text."""
        return self.prompts.task

    def timed(self, index: int, limit: int) -> Generation:
        """One timed answer to the prompt with that index."""
        streamed = self.endpoint.timed(self.prompts.texts[index], limit)
        self.add(streamed.native)
        return self.generation(index, streamed, limit)

    def ask(self, index: int, limit: int) -> Streamed:
        """An answer of ``limit`` tokens, whatever they are."""
        return self.endpoint.answer(self.prompts.texts[index], limit, full_length=True)

    def add(self, timings: Mapping[str, float]) -> None:
        """Count timings of the server's own."""
        for name, figure in timings.items():
            self.native[name] = self.native.get(name, 0.0) + figure

    def generation(self, index: int, streamed: Streamed, limit: int) -> Generation:
        """The streamed answer of at most ``limit`` tokens, with the best token count available."""
        ids = self.prompts.ids[index]
        tokens = self._count(self.prompts.texts[index], len(ids), streamed, limit)
        return Generation(
            prompt=index,
            prompt_tokens=streamed.prompt_tokens or (len(ids) if self.tokenizer else None),
            prefill_s=streamed.arrivals_s[0],
            gaps_s=tuple(after - before for before, after in pairwise(streamed.arrivals_s)),
            e2e_s=streamed.arrivals_s[-1],
            tokens=tokens,
            first_tokens=max(1, round(tokens / len(streamed.pieces))),  # an event may carry several
        )

    def _count(self, prompt: str, prompt_tokens: int, streamed: Streamed, limit: int) -> int:
        """Tokens of an answer: as the server says; else encoded here, at most ``limit``; else one per event."""
        if streamed.tokens:
            self.counted_by.add("server")
            return streamed.tokens
        if self.tokenizer is None:
            self.counted_by.add("events")
            return len(streamed.pieces)
        self.counted_by.add("tokenizer")
        whole = self.tokenizer.encode(prompt + "".join(streamed.pieces))
        return min(limit, max(1, len(whole) - prompt_tokens))


def measure(job: Job, folder: Path) -> None:
    """Measure the served model; write a trace for each prompt set as soon as it is done."""
    method = METHODS[job.variant.method]
    import_s = import_seconds(job)
    prompts, context, tokenizer = _read(job)
    conditions, untimed = job.conditions, job.effort.untimed
    started = time.perf_counter()
    with method.open_endpoint(job.spec, settings_of(job, context)) as endpoint:
        enter_stage(folder, "similarity")
        prompts = [each.answered(conditions) for each in prompts]
        compared = [_compare(endpoint, tokenizer, each) for each in prompts]
        for index, (each, top) in enumerate(zip(prompts, compared, strict=True)):
            client = Client(endpoint, each, tokenizer)
            enter_stage(folder, "latency")
            no_native = untimed or _ask_native(client, conditions.output_tokens)
            answers, memory = _answers(client, conditions)
            about = Watched(name="serving", root=job.root, own_server="elsewhere" not in endpoint.facts)
            rounds, halves, points, broke, signals = _time(client, job, about)
            artifact, reference = endpoint.artifact, each.reference
            trace = Trace(
                import_s=import_s,
                load_s=None,
                quantize_s=artifact.quantize_s if artifact else None,
                measured_s=time.perf_counter() - started,
                parameters=reference.parameters if reference else None,
                weights=None,
                weight_bytes_running=None,
                artifact_bytes=artifact.file_bytes if artifact else None,
                peak=None,
                anchor="",
                rounds=rounds,
                halves=halves,
                answers=answers,
                columns=None,
                load_points=points,
                signals=signals,
                top_logprobs=top if isinstance(top, TopLogprobs) else None,
                native=client.native,
                server_memory=memory,
                absent=_ABSENT
                | ({"weights": _PARTS, "peak": _PARTS} if memory else {})
                | ({"load_points": broke} if broke else {})
                | ({"native": no_native} if no_native else {})
                | ({"answers": _NO_FILES} if tokenizer is None else {})
                | ({"top_logprobs": top} if isinstance(top, str) else {}),
                facts={
                    **endpoint.facts,
                    "token_count": ", ".join(sorted(client.counted_by)),
                    "checkpoint_dtype": reference.checkpoint_dtype if reference else "",
                },
            )
            without_times(trace, untimed, "rounds").save(folder / TRACE_FILE.format(index))


def levels(most: int) -> list[int]:
    """The numbers of concurrent requests to try: powers of two below ``most``, and ``most``."""
    return [*(1 << power for power in range((most - 1).bit_length())), most]


def _read(job: Job) -> tuple[list[Prompts], int, Tokenizer | None]:
    """The prompt sets, the context in tokens that holds them, and the tokenizer; a model that is a URL has neither.

    A conversation is sent as the text that the model's own template makes of it, to be completed as it stands: a server's chat
    endpoint would render it by a template of the server's, which may differ, and has no place for a continuation to be scored.
    """
    if job.checkpoint.kind == "server":
        return [Prompts(task=task, ids=((),) * len(task.prompts), reference=None) for task in job.tasks], 0, None
    prompts, context = read_prompts(job)
    tokenizer = open_tokenizer(job.checkpoint)
    return [replace(each, rendered=completion_texts(tokenizer, each.task)) for each in prompts], context, tokenizer


def _compare(endpoint: Endpoint, tokenizer: Tokenizer | None, prompts: Prompts) -> TopLogprobs | str:
    """The likeliest tokens of server and reference. Done first for all prompt sets, as a server may load a model for it."""
    task, reference = prompts.task, prompts.reference
    if tokenizer is None:
        return _NO_FILES
    if task.reference is None or reference is None:
        return "no reference to compare with: it cannot open this checkpoint here"
    try:
        return compare_top_tokens(endpoint, tokenizer, prompts.texts, reference, task.reference)
    except ModelError as error:  # without likeliest tokens its speed can still be measured
        return str(error)


def _ask_native(client: Client, limit: int) -> str:
    """Add the server's own timings of an answer to every prompt, where it is asked for those; says why they cannot be used."""
    try:
        asked = [client.endpoint.native(prompt, limit) for prompt in client.prompts.texts]
    except ModelError as error:  # impossible timings; a server that is down also fails what is timed here
        return str(error)
    for timings in asked if all(asked) else ():
        client.add(timings)
    return ""


def _answers(client: Client, conditions: Conditions) -> tuple[tuple[Answer, ...], ServerMemory | None]:
    """The greedy answers, and the memory of a server that was started here while it gives them: here nothing is timed."""
    with nullcontext() if client.endpoint.pid is None else watched(client.endpoint.pid, conditions.device) as watch:
        answers = tuple(
            Answer(
                prompt=prompt, prompt_tokens=ids, tokens=None,
                text="".join(client.endpoint.answer(text, conditions.answer_tokens).pieces),
            )
            for prompt, text, ids in zip(client.task.prompts, client.prompts.texts, client.prompts.ids, strict=True)
        )  # fmt: skip
    return answers, watch.found() if watch else None


def _time(
    client: Client, job: Job, about: Watched
) -> tuple[tuple[Round, ...], tuple[Generation, ...], tuple[LoadPoint, ...], str, Mapping[str, Found]]:
    """Rounds and halves, points and what broke them, and what signals saw; nothing where the job is not to be timed."""
    if job.effort.untimed:
        return (), (), (), job.effort.untimed, {}
    with Watch(about) as watch:
        rounds, halves = _rounds(client, job)
        points, broke = _load(client, job.conditions)
    return rounds, halves, points, broke, watch.signals


def _rounds(client: Client, job: Job) -> tuple[tuple[Round, ...], tuple[Generation, ...]]:
    """One request at a time, the prompts in rotation as in the other runtimes; each is followed by an answer half as long.

    The answers before were the warm-up.
    """
    length = job.conditions.output_tokens
    turns = rotation(client.ask(0, length).arrivals_s[-1], len(client.task.prompts), job.effort)
    halves: list[Generation] = []

    def take(index: int) -> Round:
        answers = []
        for prompt in turns.at(index):
            answers.append(client.timed(prompt, length))
            halves.append(client.generation(prompt, client.ask(prompt, length // 2), length // 2))
        return Round(index=index, variant=tuple(answers), anchor=())

    rounds = until_steady(take, lambda each: sum(answer.e2e_s for answer in each.variant), job.effort, every=turns.sweep)
    return rounds, tuple(halves)


def _load(client: Client, conditions: Conditions) -> tuple[tuple[LoadPoint, ...], str]:
    """A point for each level up to the one at which the server failed, and that failure in words (empty where none did).

    What was timed alone before is kept, so a failure costs only the figures of concurrency.
    """
    points: list[LoadPoint] = []
    for level in levels(conditions.concurrency):
        try:
            points.append(burst(client, level, conditions.output_tokens))
        except ModelError as error:
            hint = _INTERRUPTS if isinstance(error, StreamDroppedError) and level > 1 else ""
            return tuple(points), f"with {level} requests at once: {error}{hint}"
    return tuple(points), ""


def burst(client: Client, concurrency: int, limit: int) -> LoadPoint:
    """``concurrency`` requests at the same moment, prompts in rotation; seconds from the first start to the last token."""
    together = Barrier(concurrency)
    chosen = [number % len(client.task.prompts) for number in range(concurrency)]

    def ask(index: int) -> tuple[float, Streamed]:
        together.wait()
        return time.perf_counter(), client.ask(index, limit)

    with ThreadPoolExecutor(concurrency) as pool:
        asked = list(pool.map(ask, chosen))
    answers = [client.generation(index, streamed, limit) for index, (_, streamed) in zip(chosen, asked, strict=True)]
    begun: Sequence[float] = [started for started, _ in asked]
    ended = [started + answer.e2e_s for started, answer in zip(begun, answers, strict=True)]
    return LoadPoint(
        concurrency=concurrency,
        tokens=sum(answer.tokens for answer in answers),
        seconds=max(ended) - min(begun),
        ttft_s=tuple(answer.prefill_s for answer in answers),
    )
