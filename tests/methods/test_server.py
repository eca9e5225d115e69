"""Method server: streams are read as sent, every way to fail is one clear sentence, and keys go nowhere else."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantbench.core.errors import ModelError, UnsupportedError, UsageError
from quantbench.core.job import Checkpoint
from quantbench.core.scenario import Conditions, ServerAddress, Spec, Variant, parse_server
from quantbench.methods import METHODS, Endpoint, Settings
from quantbench.methods.server import bearer_key
from quantbench.models import check_name
from quantbench.models.checkpoint import resolve
from quantbench.runtimes.openai.client import connect
from quantbench.runtimes.openai.started import LocalServer, Place, Program

SECRET = "sk-very-secret"
SILENCE_S = 0.6
PATIENCE_S = 30.0
"""The tests share a machine that stalls; only those about slow servers wait for less."""


@dataclass
class StandIn:
    """A server that answers as it is told: paths to functions of the handler; remembers what it was asked."""

    routes: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    asked: list[tuple[str, Mapping[str, str], dict[str, Any]]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for asked, _, body in self.asked if asked == path]


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    state = StandIn(routes={"/v1/models": says({"data": [{"id": "m", "owned_by": "tests"}]})})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            """Keep quiet."""

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _answer(self, body: dict[str, Any]) -> None:
            state.asked.append((self.path, dict(self.headers), body))
            self.body = body
            state.routes.get(self.path, fails(404))(self)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that went away is what some tests are about
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def says(body: object, status: int = 200, kind: str = "application/json", **headers: str) -> Callable[[Any], None]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    def answer(handler: Any) -> None:
        handler.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def fails(status: int, body: object = None, **headers: str) -> Callable[[Any], None]:
    return says({"error": {"message": "as told"}} if body is None else body, status, **headers)


def event(text: str | None = None, finish: str | None = None, **more: object) -> bytes:
    choices = [] if text is None else [{"index": 0, "text": text, "finish_reason": finish}]
    return b"data: " + json.dumps({"choices": choices, **more}, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
WHOLE = (event("Hello"), event(" world"), event("", "length"), DONE)


def streams(*chunks: bytes, pause_s: float = 0.0, cut: bool = False) -> Callable[[Any], None]:
    """Send chunks as an event stream; ``cut`` breaks off without the end that chunked transfer takes."""

    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream; charset=utf-8")
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        for chunk in chunks:
            handler.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            handler.wfile.flush()
            time.sleep(pause_s)
        if not cut:
            handler.wfile.write(b"0\r\n\r\n")
        handler.close_connection = cut

    return answer


def hangs_up(handler: Any) -> None:
    handler.close_connection = True


def sleeps(handler: Any) -> None:
    time.sleep(2 * SILENCE_S)
    hangs_up(handler)


@contextmanager
def connected(
    stand_in: StandIn, key: str = "", model: str = "", silence_s: float = PATIENCE_S, request_s: float = PATIENCE_S
) -> Iterator[Endpoint]:
    address = ServerAddress(url=stand_in.url, model=model)
    with connect(address, key=key, silence_s=silence_s, request_s=request_s) as endpoint:
        yield endpoint


def spec(server: str = "", model: str = "canary") -> Spec:
    variant = Variant(method="server", precision="as-served")
    return Spec(model=model, variant=variant, conditions=Conditions(server=server))


class TestStream:
    def test_pieces_arrive_in_order_with_the_servers_counts(self, stand_in: StandIn) -> None:
        usage = event(usage={"prompt_tokens": 3, "completion_tokens": 7})
        stand_in.routes["/v1/completions"] = streams(*WHOLE[:3], usage, DONE, pause_s=0.05)
        with connected(stand_in) as endpoint:
            answer = endpoint.answer("Say", 9)

        assert answer.pieces == ("Hello", " world")
        assert 0 < answer.arrivals_s[0] <= answer.arrivals_s[1]
        assert answer.arrivals_s[1] >= 0.05  # it was not sent before, however long the machine stalls
        assert (answer.tokens, answer.prompt_tokens) == (7, 3)
        (asked,) = stand_in.bodies("/v1/completions")
        assert (asked["model"], asked["prompt"], asked["max_tokens"], asked["temperature"]) == ("m", "Say", 9, 0)
        assert asked["stream"] is True

    @pytest.mark.parametrize("size", [1, 2, 7, 1000])
    def test_events_are_found_however_the_bytes_are_cut(self, stand_in: StandIn, size: int) -> None:
        """Characters and line ends fall between chunks, and a text may hold what Unicode calls a line end."""
        text = "é\u2028\x85 \U0001f600"
        raw = b": ping\r\n\r\n" + event(text).replace(b"\n", b"\r\n") + event("", "stop").rstrip() + b"\n\n" + DONE.rstrip()
        stand_in.routes["/v1/completions"] = streams(*(raw[at : at + size] for at in range(0, len(raw), size)))
        with connected(stand_in) as endpoint:
            assert endpoint.answer("Say", 9).pieces == (text,)

    def test_tokens_without_a_text_took_their_time_too(self, stand_in: StandIn) -> None:
        """An end of sequence, half a character: a server that is known, as it was started here, sends an event for each."""
        last = event("", "stop", usage={"prompt_tokens": 3, "completion_tokens": 4})
        stand_in.routes["/v1/completions"] = streams(event(""), event("Hello"), event(""), last, DONE, pause_s=0.05)
        address = ServerAddress(url=stand_in.url, model="m")
        local = LocalServer(address=address, key="", kernel="", pid=1, scoring="")
        with connect(address, key="", facts={}, local=local) as endpoint:
            answer = endpoint.answer("Say", 9)
        assert (answer.pieces, answer.tokens) == (("", "Hello", "", ""), 4)
        assert answer.arrivals_s[3] >= 0.15
        with connected(stand_in) as endpoint:
            assert endpoint.answer("Say", 9).pieces == ("Hello",)

    def test_an_empty_answer_is_one_empty_piece(self, stand_in: StandIn) -> None:
        stand_in.routes["/v1/completions"] = streams(event("", "stop"), DONE)
        with connected(stand_in) as endpoint:
            answer = endpoint.answer("Say", 9)
        assert answer.pieces == ("",)
        assert (answer.tokens, answer.prompt_tokens) == (None, None)

    @pytest.mark.parametrize("status", [400, 422])
    def test_what_a_strict_server_refuses_is_left_out_from_then_on(self, stand_in: StandIn, status: int) -> None:
        standard = {"model", "prompt", "max_tokens", "temperature", "stream"}

        def strict(handler: Any) -> None:
            (streams(*WHOLE) if set(handler.body) == standard else fails(status))(handler)

        stand_in.routes["/v1/completions"] = strict
        with connected(stand_in) as endpoint:
            before = endpoint.facts["request_extras"]
            answers = [endpoint.answer("Say", 9).pieces for _ in range(2)]
            after = endpoint.facts["request_extras"]

        assert answers == [("Hello", " world")] * 2
        asked = [set(body) - standard for body in stand_in.bodies("/v1/completions")]
        assert asked[1:] == [{"stream_options"}, set(), set()]
        assert {"stream_options", "cache_prompt"} <= asked[0]
        assert before != after == "none"

    def test_prompt_caches_are_asked_off_each_request(self, stand_in: StandIn) -> None:
        """A prompt is timed many times; a cache would time the memory of it."""
        stand_in.routes["/v1/completions"] = streams(*WHOLE)
        with connected(stand_in) as endpoint:
            for _ in range(2):
                endpoint.answer("Say", 9)
        one, other = stand_in.bodies("/v1/completions")
        assert one["cache_prompt"] is other["cache_prompt"] is False
        assert one["cache_salt"] != other["cache_salt"]

    def test_only_timed_answers_go_on_after_their_end(self, stand_in: StandIn) -> None:
        """A text that is compared ends where the reference's does."""
        stand_in.routes["/v1/completions"] = streams(*WHOLE)
        with connected(stand_in) as endpoint:
            endpoint.answer("Say", 9)
            endpoint.timed("Say", 9)
        one, other = stand_in.bodies("/v1/completions")
        assert "ignore_eos" not in one
        assert other["ignore_eos"] is True

    @pytest.mark.parametrize(
        ("timings", "expected"),
        [
            ({}, {"prompt_tokens": 20, "prefill_s": 0.01, "tokens": 8, "decode_s": 0.02}),
            ({"predicted_per_token_ms": 0}, {}),
            ({"prompt_ms": "10"}, {}),
            ({"predicted_ms": 1e9}, {}),  # longer than the request took
            ({"prompt_n": 1e9}, {}),
        ],
    )
    def test_llama_servers_own_timings(
        self, stand_in: StandIn, timings: dict[str, object], expected: dict[str, float]
    ) -> None:
        said = {"prompt_n": 20, "prompt_ms": 10.0, "predicted_n": 9, "predicted_ms": 20.0, "predicted_per_token_ms": 2.5}
        last = event("", "length", timings={**said, **timings})
        stand_in.routes["/v1/completions"] = streams(*WHOLE[:2], last, DONE)
        with connected(stand_in) as endpoint:
            assert endpoint.answer("Say", 9).native == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("others", "expected"), [(0, {"prompt_tokens": 20, "prefill_s": 0.01, "tokens": 8, "decode_s": 0.02}), (1, {})]
    )
    def test_vllm_counts_for_prometheus(self, stand_in: StandIn, others: int, expected: dict[str, float]) -> None:
        """What was added by one request: of its nine tokens the first came with the prompt. Two cannot be told apart."""
        requests = 5

        def metrics(handler: Any) -> None:
            series = {
                "prompt_tokens_total": 20, "request_prefill_time_seconds_sum": 0.01, "generation_tokens_total": 9,
                "request_decode_time_seconds_sum": 0.02, "request_decode_time_seconds_count": 1,
            }  # fmt: skip
            lines = [f'vllm:{name}{{engine="0",model_name="a b"}} {requests * each}' for name, each in series.items()]
            says("\n".join(["# HELP vllm: x 1", *lines, "other 7"]).encode(), kind="text/plain")(handler)

        def answers(handler: Any) -> None:
            nonlocal requests
            requests += 1 + others
            streams(*WHOLE)(handler)

        stand_in.routes |= {"/metrics": metrics, "/v1/completions": answers}
        with connected(stand_in) as endpoint:
            assert endpoint.timed("Say", 9).native == pytest.approx(expected)
            assert (requests, endpoint.native("Say", 9)) == (6 + others, {})  # no further answer is asked for

    @pytest.mark.parametrize("late", [True, False])
    def test_what_was_counted_of_an_answer_before_is_not_taken_for_this_one(self, stand_in: StandIn, late: bool) -> None:
        """Counted a moment late: before the next answer, or only while it is given."""
        tokens = iter([0, 0, 0, 4] if late else [0, 4, 4, 4, 13])  # at each look

        def metrics(handler: Any) -> None:
            counted = next(tokens)
            requests = (counted > 0) + (counted > 4)
            series = {
                "prompt_tokens_total": 20 * requests, "request_prefill_time_seconds_sum": 0.01 * requests,
                "generation_tokens_total": counted, "request_decode_time_seconds_sum": 0.0025 * counted,
                "request_decode_time_seconds_count": requests,
            }  # fmt: skip
            lines = [f'vllm:{name}{{engine="0"}} {figure}' for name, figure in series.items()]
            says("\n".join(lines).encode(), kind="text/plain")(handler)

        usage = event("", "length", usage={"prompt_tokens": 20, "completion_tokens": 9})
        stand_in.routes |= {"/metrics": metrics, "/v1/completions": streams(*WHOLE[:2], usage, DONE)}
        with connected(stand_in) as endpoint:
            found = endpoint.timed("Say", 9).native
        expected = {"prompt_tokens": 20, "prefill_s": 0.01, "tokens": 8, "decode_s": 0.0225}
        assert found == ({} if late else pytest.approx(expected))

    def test_one_that_shows_no_counters_is_asked_for_them_once(self, stand_in: StandIn) -> None:
        asked = 0

        def metrics(handler: Any) -> None:
            nonlocal asked
            asked += 1
            says(b"none here", kind="text/plain")(handler)

        stand_in.routes |= {"/metrics": metrics, "/v1/completions": streams(*WHOLE)}
        with connected(stand_in) as endpoint:
            assert [endpoint.timed("Say", 9).native for _ in range(3)] == [{}] * 3
        assert asked == 1

    def test_many_threads_may_ask_at_once(self, stand_in: StandIn) -> None:
        def echo(handler: Any) -> None:
            streams(event(handler.body["prompt"]), event("", "stop"), DONE, pause_s=0.01)(handler)

        stand_in.routes["/v1/completions"] = echo
        found: dict[int, str] = {}
        with connected(stand_in) as endpoint:

            def ask(number: int) -> None:
                found[number] = "".join(endpoint.answer(f"prompt {number}", 9).pieces)

            threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert found == {number: f"prompt {number}" for number in range(8)}


FAILURES: dict[str, tuple[Callable[[Any], None], str]] = {
    "slow": (sleeps, f"sent nothing for {SILENCE_S} s"),
    "slow in the middle": (streams(WHOLE[0], pause_s=2 * SILENCE_S, cut=True), f"sent nothing for {SILENCE_S} s"),
    "drops at once": (hangs_up, "dropped the connection"),
    "drops the stream": (streams(WHOLE[0], cut=True), "dropped the connection"),
    "ends the stream early": (streams(WHOLE[0], DONE), r"dropped the stream after 1 events"),
    "fails in the stream": (streams(WHOLE[0], b'data: {"error": {"message": "out of\\nmemory"}}\n\n'), "error: out of memory"),
    "401": (fails(401), r"requires a key, but none was sent \(401\); set QUANTBENCH_SERVER_KEY"),
    "403": (fails(403), r"requires a key, but none was sent \(403\)"),
    "404": (fails(404), r"\(404: as told\); check that the URL ends in /v1 and that it serves 'm'"),
    "400": (fails(400), r"refused the request \(400: as told\)"),
    "429": (fails(429), r"limits its requests \(429: as told\)"),
    "500": (fails(500), r"failed \(500: as told\); look at the server's log"),
    "500 without words": (fails(500, b""), r"failed \(500\)"),
    "500 with a page": (says(b"<h1>\x1b[31mSorry</h1>\n" * 99, 500), r"failed \(500: <h1> \[31mSorry</h1> .{,200}\);"),
    "FastAPI's words": (fails(503, {"detail": "busy"}), r"failed \(503: busy\)"),
    "redirects": (fails(307, location="http://127.0.0.1:9/v1"), r"redirects elsewhere \(307\), which is not followed"),
    "is a web page": (says(b"<html>", kind="text/html"), r"does not stream: it answered with text/html"),
    "does not stream": (says({"choices": [{"text": "x"}]}), r"does not stream: it answered with application/json"),
    "no JSON": (streams(b"data: hello\n\n"), r"sent 'hello' instead of a JSON object"),
    "no object": (streams(b"data: [1]\n\n"), r"sent '\[1\]' instead of a JSON object"),
    "never stops": (streams(*[event("x")] * 200, DONE), "ignores max_tokens"),
}


class TestFailures:
    @pytest.mark.parametrize("name", FAILURES)
    def test_each_is_one_sentence_that_names_the_server(self, stand_in: StandIn, name: str) -> None:
        route, sentence = FAILURES[name]
        with connected(stand_in, silence_s=SILENCE_S if name.startswith("slow") else PATIENCE_S) as endpoint:
            stand_in.routes["/v1/completions"] = route
            with pytest.raises(ModelError, match=sentence) as caught:
                endpoint.answer("Say", 4)
        message = str(caught.value)
        assert message.startswith(f"server {stand_in.url} ")
        assert message.isprintable()
        assert len(message) < 500

    def test_a_server_that_is_down(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        opened = METHODS["server"].open_endpoint(spec(url), settings())
        with pytest.raises(ModelError, match=rf"server {url} cannot be reached \(.*refused.*\); start it"), opened:
            pass

    def test_after_a_failure_the_endpoint_still_answers(self, stand_in: StandIn) -> None:
        with connected(stand_in) as endpoint:
            stand_in.routes["/v1/completions"] = streams(WHOLE[0], cut=True)
            with pytest.raises(ModelError):
                endpoint.answer("Say", 4)
            stand_in.routes["/v1/completions"] = streams(*WHOLE)
            assert endpoint.answer("Say", 4).pieces == ("Hello", " world")

    def test_a_connection_that_was_closed_meanwhile_is_opened_anew(self, stand_in: StandIn) -> None:
        """Once: a server that never answers is not asked for ever."""

        def closes_first(handler: Any) -> None:
            stand_in.routes["/v1/completions"] = streams(*WHOLE)
            hangs_up(handler)

        with connected(stand_in) as endpoint:
            stand_in.routes["/v1/completions"] = closes_first
            assert endpoint.answer("Say", 4).pieces == ("Hello", " world")
            assert len(stand_in.bodies("/v1/completions")) == 2
            stand_in.routes["/v1/completions"] = hangs_up
            with pytest.raises(ModelError, match="dropped the connection"):
                endpoint.answer("Say", 4)
            assert len(stand_in.bodies("/v1/completions")) == 4

    def test_a_redirect_is_not_followed_with_the_key(self, stand_in: StandIn) -> None:
        stand_in.routes["/v1/completions"] = fails(302, location=f"{stand_in.url}/elsewhere")
        stand_in.routes["/v1/elsewhere"] = streams(*WHOLE)
        with connected(stand_in, key=SECRET) as endpoint, pytest.raises(ModelError, match="not followed"):
            endpoint.answer("Say", 4)
        assert "/v1/elsewhere" not in [path for path, _, _ in stand_in.asked]


def usage(**counts: object) -> tuple[bytes, ...]:
    return (*WHOLE[:3], event(usage=counts), DONE)


def drips(handler: Any) -> None:
    """A byte now and then, each soon enough after the one before: the headers first."""
    with contextlib.suppress(OSError):
        for byte in b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx: " + b"x" * 1000:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(SILENCE_S / 10)
    handler.close_connection = True


def floods(line: bytes, times: int) -> Callable[[Any], None]:
    def answer(handler: Any) -> None:
        with contextlib.suppress(OSError):
            streams(*[line] * times)(handler)
        handler.close_connection = True

    return answer


HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "more tokens than asked": (streams(*usage(completion_tokens=5)), "counts 5 tokens of an answer, where 4 are the most"),
    "1e15 tokens": (streams(*usage(completion_tokens=10**15)), r"counts more than 10\^9 tokens of an answer"),
    "1e30 tokens": (streams(*usage(completion_tokens=10**30)), r"counts more than 10\^9 tokens of an answer"),
    "a prompt of 1e30": (streams(*usage(prompt_tokens=10**30)), r"counts more than 10\^9 tokens of a prompt"),
    "a long line": (floods(b"data: " + b"x" * (1 << 18), 8), "sent an event of more than 1048576 bytes"),
    "a long comment": (floods(b":" + b"x" * (1 << 18), 8), "sent an event of more than 1048576 bytes"),
    "comments without end": (floods((b":" + b"x" * 1022 + b"\n") * 512, 200), "streams more than 67108864 bytes"),
    "events without end": (streams(event() * 2000, DONE), "sends events without end"),
    "brackets without end": (streams(b"data: " + b"[" * 100_000 + b"\n\n"), "instead of a JSON object"),
    "compressed": (says(b"x", kind="text/event-stream", **{"content-encoding": "gzip"}), r"compresses its answer \(gzip\)"),
    "a long error": (says(b"x" * (1 << 20), 500), r"failed \(500: x{200}\)"),
    "slow, a byte now and then": (drips, f"had not finished its answer after {2 * SILENCE_S:g} s"),
    "slow, an event now and then": (
        streams(*[event("x")] * 20, pause_s=SILENCE_S / 2), f"had not finished its answer after {2 * SILENCE_S:g} s",
    ),
}  # fmt: skip


class TestHostile:
    """What a server may send that is no figure: each ends the request with one sentence."""

    @pytest.mark.parametrize("name", HOSTILE)
    def test_is_refused_in_one_sentence(self, stand_in: StandIn, name: str) -> None:
        route, sentence = HOSTILE[name]
        request_s = 2 * SILENCE_S if name.startswith("slow") else PATIENCE_S
        with connected(stand_in) as opened:
            facts = opened.facts
        with connect(ServerAddress(url=stand_in.url, model="m"), key="", facts=facts, request_s=request_s) as endpoint:
            stand_in.routes["/v1/completions"] = route
            with pytest.raises(ModelError, match=sentence) as caught:
                endpoint.answer("Say", 4)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500

    @pytest.mark.parametrize("count", [None, -3, True, "7", 2.5, 1e30, float("nan")])
    def test_what_is_no_count_is_counted_here(self, stand_in: StandIn, count: object) -> None:
        stand_in.routes["/v1/completions"] = streams(*usage(completion_tokens=count, prompt_tokens=count))
        with connected(stand_in) as endpoint:
            answer = endpoint.answer("Say", 9)
        assert (answer.tokens, answer.prompt_tokens) == (None, None)

    @pytest.mark.parametrize(
        ("top", "sentence"),
        [
            ({"a": 0.5}, "sent 0.5 as a log-probability"),
            ({"a": -0.5, "b": 1e30}, r"sent 1e\+30 as"),
            ({"a": 10**400}, "sent a number beyond float64 as"),
            ({"a": float("-inf")}, "sent -inf as"),
            ({"a": float("nan")}, "sent nan as"),
            ({"a": -0.1, "b": -9999.0}, "sent -9999 as"),
            ({"a": -0.1, "b": -0.2}, "add up to more than 1"),
        ],
    )
    def test_log_probabilities_that_are_none(self, stand_in: StandIn, top: object, sentence: str) -> None:
        stand_in.routes["/v1/completions"] = says({"choices": [{"text": " a", "logprobs": {"top_logprobs": [top]}}]})
        with connected(stand_in) as endpoint, pytest.raises(ModelError, match=sentence):
            endpoint.top_tokens("Say", 5)

    def test_float32s_rounding_is_no_lie(self, stand_in: StandIn) -> None:
        stand_in.routes["/v1/completions"] = says(
            {"choices": [{"text": " a", "logprobs": {"top_logprobs": [{"a": 1e-6, "b": -15.0}]}}]}
        )
        with connected(stand_in) as endpoint:
            assert endpoint.top_tokens("Say", 5) == {"a": 0.0, "b": -15.0}

    @pytest.mark.parametrize(
        "said",
        [
            {"eval_count": 10**15}, {"prompt_eval_count": 10**30}, {"eval_duration": 10**30}, {"eval_duration": 10**12},
            {"eval_duration": 1}, {"prompt_eval_duration": 1},
        ],
    )  # fmt: skip
    def test_ollamas_timings_that_cannot_be(self, stand_in: StandIn, said: dict[str, int]) -> None:
        good = {"prompt_eval_count": 20, "prompt_eval_duration": 10**7, "eval_count": 8, "eval_duration": 10**7}
        stand_in.routes["/api/version"] = says({"version": "0.99.1"})
        stand_in.routes["/api/generate"] = says({**good, **said})
        with connected(stand_in) as endpoint, pytest.raises(ModelError, match=r"cannot be used$"):
            endpoint.native("Say", 8)

    def test_a_body_without_end(self, stand_in: StandIn) -> None:
        stand_in.routes["/v1/models"] = floods(b"x" * (1 << 20), 40)
        with pytest.raises(ModelError, match="sent a body of more than 16777216 bytes"), connected(stand_in):
            pass


class TestModels:
    @pytest.mark.parametrize(
        ("listed", "sentence"),
        [
            ({"data": [{"id": "one"}, {"id": "two"}]}, r"serves 2 models \(one, two\); name one after it: http://\S+/v1#MODEL"),
            ({"data": []}, "names no model"),
            ({"object": "list"}, "names no model"),
        ],
    )
    def test_the_model_must_be_clear(self, stand_in: StandIn, listed: object, sentence: str) -> None:
        stand_in.routes["/v1/models"] = says(listed)
        with pytest.raises(ModelError, match=sentence), connected(stand_in):
            pass

    def test_a_named_model_needs_no_list(self, stand_in: StandIn) -> None:
        del stand_in.routes["/v1/models"]
        stand_in.routes["/v1/completions"] = streams(*WHOLE)
        with connected(stand_in, model="org/big:tag") as endpoint:
            endpoint.answer("Say", 4)
            assert endpoint.facts["served_model"] == "org/big:tag"
        assert stand_in.bodies("/v1/completions")[0]["model"] == "org/big:tag"

    def test_the_server_is_named_as_it_says(self, stand_in: StandIn) -> None:
        with connected(stand_in) as endpoint:
            facts = dict(endpoint.facts)
            assert "hardware" in facts.pop("elsewhere")
            assert {**facts, "request_extras": ""} == {
                "kernel": "tests", "server": stand_in.url, "served_model": "m", "request_extras": "",
            }  # fmt: skip


class TestTopTokens:
    @pytest.mark.parametrize(
        "logprobs",
        [
            {"top_logprobs": [{" a": -0.5, "b": -1.5, "c": -2}]},
            {"content": [{"top_logprobs": [{"token": " a", "logprob": -0.5}, {"token": "b", "logprob": -1.5},
                                           {"token": "c", "logprob": -2}]}]},
        ],
        ids=["OpenAI", "llama-server"],
    )  # fmt: skip
    def test_both_forms_are_read(self, stand_in: StandIn, logprobs: object) -> None:
        stand_in.routes["/v1/completions"] = says({"choices": [{"text": " a", "logprobs": logprobs}]})
        with connected(stand_in) as endpoint:
            assert endpoint.top_tokens("Say", 2) == {" a": -0.5, "b": -1.5}
        (asked,) = stand_in.bodies("/v1/completions")
        assert (asked["logprobs"], asked["max_tokens"]) == (2, 1)

    @pytest.mark.parametrize(
        "logprobs",
        [None, {}, [], {"top_logprobs": None}, {"top_logprobs": [None]}, {"content": []}, {"content": [1]},
         {"top_logprobs": [{"a": None, "b": "x", "c": True}]}],
    )  # fmt: skip
    def test_without_any_there_is_none(self, stand_in: StandIn, logprobs: object) -> None:
        stand_in.routes["/v1/completions"] = says({"choices": [{"text": " a", "logprobs": logprobs}]})
        with connected(stand_in) as endpoint:
            assert endpoint.top_tokens("Say", 5) is None

    @pytest.mark.parametrize("status", [400, 422, 500, 501])
    def test_a_server_that_refuses_them_has_none(self, stand_in: StandIn, status: int) -> None:
        stand_in.routes["/v1/completions"] = fails(status)
        with connected(stand_in) as endpoint:
            assert endpoint.top_tokens("Say", 5) is None


class TestOllama:
    def test_its_own_timings_are_nanoseconds_and_counts(self, stand_in: StandIn) -> None:
        stand_in.routes["/api/version"] = says({"version": "0.99.1"})
        stand_in.routes["/api/generate"] = says(
            {"response": "x", "prompt_eval_count": 20, "prompt_eval_duration": 10_000_000, "eval_count": 8,
             "eval_duration": 20_000_000, "load_duration": 1}
        )  # fmt: skip
        with connected(stand_in) as endpoint:
            found = endpoint.native("Say", 8)
            assert endpoint.facts["kernel"] == "ollama 0.99.1"
        assert found == {"prompt_tokens": 20, "prefill_s": 0.01, "tokens": 8, "decode_s": 0.02}
        (asked,) = stand_in.bodies("/api/generate")
        assert (asked["model"], asked["prompt"], asked["stream"], asked["raw"]) == ("m", "Say", False, True)
        assert asked["options"]["num_predict"] == 8

    def test_a_cached_prompt_gives_none(self, stand_in: StandIn) -> None:
        stand_in.routes["/api/version"] = says({"version": "0.99.1"})
        stand_in.routes["/api/generate"] = says({"response": "x", "eval_count": 8, "eval_duration": 2_000_000_000})
        with connected(stand_in) as endpoint:
            assert endpoint.native("Say", 8) == {}

    @pytest.mark.parametrize("body", [{"other": 1}, [], b"<html>"])
    def test_other_servers_are_not_asked(self, stand_in: StandIn, body: object) -> None:
        stand_in.routes["/api/version"] = says(body)
        with connected(stand_in) as endpoint:
            assert endpoint.native("Say", 8) == {}
        assert stand_in.bodies("/api/generate") == []


class TestAddress:
    @pytest.mark.parametrize(
        ("text", "url", "model"),
        [
            ("http://localhost:8080/v1", "http://localhost:8080/v1", ""),
            ("https://host/deep/v1/#org/m:tag@x", "https://host/deep/v1", "org/m:tag@x"),
            ("http://[::1]:1/v1", "http://[::1]:1/v1", ""),
        ],
    )
    def test_url_and_model(self, text: str, url: str, model: str) -> None:
        assert parse_server(text) == ServerAddress(url=url, model=model)
        assert Conditions(server=text).server == text
        check_name(text)

    @pytest.mark.parametrize(
        "text", ["localhost:8080", "ftp://h/v1", "http://", "http://h:x/v1", "http://h:99999/v1", "http://[h"]
    )
    def test_what_is_no_url_is_said_before_anything_runs(self, text: str) -> None:
        with pytest.raises(UsageError, match="is not a URL; write http"):
            Conditions(server=text)

    @pytest.mark.parametrize(
        "text", ["http://me:hush@h/v1", "http://hush@h/v1", "http://h/v1?api_key=hush", "http://me:hush@[h"]
    )
    @pytest.mark.parametrize("where", [lambda text: Conditions(server=text), check_name])
    def test_secrets_are_refused_and_not_repeated(self, text: str, where: Callable[[str], object]) -> None:
        with pytest.raises(UsageError, match="QUANTBENCH_SERVER_KEY") as caught:
            where(text)
        assert "hush" not in str(caught.value)

    def test_a_url_is_a_model_without_files(self) -> None:
        url = "http://localhost:8080/v1#m"
        found = resolve(url)
        assert (found.name, found.kind) == (url, "server")
        for method in METHODS:
            if method.missing() or method.name == "server":
                continue
            with pytest.raises(UnsupportedError, match="cannot open a server's URL"):
                method.check(found)


class TestKeys:
    @pytest.fixture(autouse=True)
    def _no_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("QUANTBENCH_SERVER_KEY", "OPENAI_API_KEY"):
            monkeypatch.delenv(name, raising=False)

    @pytest.mark.parametrize(
        ("url", "ours", "theirs", "sent"),
        [
            ("https://api.test/v1", "mine", "openai", "mine"),
            ("https://api.test/v1", "", "openai", "openai"),
            ("http://localhost:1/v1", "", "openai", "openai"),
            ("http://api.test/v1", "", "openai", ""),
            ("http://api.test/v1", "mine", "openai", "mine"),
            ("https://api.test/v1", "", "", ""),
        ],
    )
    def test_which_key_is_sent(self, monkeypatch: pytest.MonkeyPatch, url: str, ours: str, theirs: str, sent: str) -> None:
        """OpenAI's own key never goes unencrypted to another machine."""
        monkeypatch.setenv("QUANTBENCH_SERVER_KEY", ours)
        monkeypatch.setenv("OPENAI_API_KEY", theirs)
        assert bearer_key(parse_server(url)) == sent

    def test_a_broken_key_is_not_repeated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QUANTBENCH_SERVER_KEY", f"{SECRET}\r\nX-Other: 1")
        with pytest.raises(UsageError, match="QUANTBENCH_SERVER_KEY holds characters") as caught:
            bearer_key(parse_server("http://h/v1"))
        assert SECRET not in str(caught.value)

    def test_the_key_is_sent_and_never_told(self, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QUANTBENCH_SERVER_KEY", SECRET)
        stand_in.routes["/v1/completions"] = streams(*WHOLE)
        wanted = spec(stand_in.url)
        with METHODS["server"].open_endpoint(wanted, settings()) as endpoint:
            answer = endpoint.answer("Say", 4)
            told = [repr(endpoint.facts), repr(answer)]
            for status in (401, 500):
                stand_in.routes["/v1/completions"] = fails(status, {"error": f"bad key {SECRET}"})
                with pytest.raises(ModelError) as caught:
                    endpoint.answer("Say", 4)
                told.append(str(caught.value))
        assert [headers["Authorization"] for _, headers, _ in stand_in.asked] == [f"Bearer {SECRET}"] * len(stand_in.asked)
        assert "rejected the key" in told[2]
        assert "bad key ***" in told[3]
        assert SECRET not in " ".join([*told, repr(METHODS["server"].recipe(wanted))])

    def test_no_word_of_the_server_repeats_it(self, stand_in: StandIn) -> None:
        """In its name, its models, its headers, its errors, what is no JSON, and in an answer, even where that cuts it."""
        stand_in.routes["/v1/models"] = says({"data": [{"id": f"m {SECRET}", "owned_by": f"by {SECRET}"}]})
        half = len(SECRET) // 2
        told: list[str] = []
        with connected(stand_in, key=SECRET) as endpoint:
            stand_in.routes["/v1/completions"] = streams(event(f"a {SECRET[:half]}"), event(SECRET[half:]), *WHOLE[2:])
            answer = endpoint.answer("Say", 4)
            told += [repr(endpoint.facts), repr(answer)]
            assert ("".join(answer.pieces), len(answer.pieces), len(answer.arrivals_s)) == ("a ***", 2, 2)
            for route in (
                fails(404), says(b"x" * 195 + SECRET.encode(), 500), says(b"", kind=f"text/{SECRET}"),
                streams(b"data: " + b"y" * 190 + SECRET.encode() + b"\n\n"), streams(event(error=f"bad {SECRET}")),
            ):  # fmt: skip
                stand_in.routes["/v1/completions"] = route
                with pytest.raises(ModelError) as caught:
                    endpoint.answer("Say", 4)
                told.append(str(caught.value))
        assert SECRET[:half] not in " ".join(told)
        assert stand_in.bodies("/v1/completions")[0]["model"] == f"m {SECRET}"  # what is asked for stays what it is called

    def test_a_placeholder_for_a_key_is_no_secret(self, stand_in: StandIn) -> None:
        stand_in.routes["/v1/completions"] = streams(*WHOLE)
        with connected(stand_in, key="o") as endpoint:
            assert endpoint.answer("Say", 4).pieces == ("Hello", " world")

    def test_the_recipe_names_server_and_concurrency(self) -> None:
        keys = {
            json.dumps(dict(METHODS["server"].recipe(replace(spec(server), conditions=conditions))))
            for server in ("http://a/v1", "http://b/v1", "gguf/q8_0")
            for conditions in (Conditions(server=server), Conditions(server=server, concurrency=8))
        }
        assert len(keys) == 6


def settings(checkpoint: Checkpoint | None = None) -> Settings:
    return Settings(checkpoint=checkpoint or resolve("canary"), threads=1, context=128)


class TestMethod:
    def test_without_a_server_it_is_skipped(self) -> None:
        opened = METHODS["server"].open_endpoint(spec(), settings())
        with pytest.raises(UnsupportedError, match="no server was named; give --server URL"), opened:
            pass

    def test_a_model_that_is_a_server_names_it(self, stand_in: StandIn) -> None:
        stand_in.routes["/v1/completions"] = streams(*WHOLE)
        checkpoint = resolve(stand_in.url)
        with METHODS["server"].open_endpoint(spec(model=stand_in.url), settings(checkpoint)) as endpoint:
            assert endpoint.answer("Say", 4).pieces == ("Hello", " world")
        twice = METHODS["server"].open_endpoint(spec("http://other/v1", stand_in.url), settings(checkpoint))
        with pytest.raises(UnsupportedError, match="is already a server, and --server names 'http://other/v1'"), twice:
            pass

    def test_a_precision_that_gguf_lacks(self) -> None:
        opened = METHODS["server"].open_endpoint(spec("gguf/q9_9"), settings())
        with pytest.raises(UsageError, match="unknown precision of gguf 'q9_9'"), opened:
            pass


@pytest.mark.usefixtures("artifacts")
class TestLlamaCppServer:
    """The real server of llama-cpp-python, started by the method itself."""

    def test_it_serves_the_file_that_gguf_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Text, log-probabilities and file are those of method gguf in this process; the server is gone afterwards."""
        from quantbench.measuring.passes.similarity import log_softmax
        from quantbench.runtimes import open_tokenizer

        for name, value in {"HOST": "0.0.0.0", "PORT": "1", "MODEL": "no such file", "SEED": "x"}.items():  # noqa: S104 - must not be heeded
            monkeypatch.setenv(name, value)
        tokenizer = open_tokenizer(resolve("canary"))
        prompt = "The function returns"
        ids = tokenizer.encode(prompt)
        direct = Spec(model="canary", variant=Variant(method="gguf", precision="q8_0"))
        with METHODS["gguf"].open(direct, settings()) as model:
            expected = tokenizer.decode(list(model.generate(ids, 12)))
            (logprobs,) = log_softmax(np.concatenate([chunk.copy() for chunk in model.score(ids, first=len(ids) - 1)]))
        with METHODS["server"].open_endpoint(spec("gguf/q8_0"), settings()) as endpoint:
            given = endpoint.top_tokens(prompt, 5)
            answers = [endpoint.answer(prompt, 12) for _ in range(2)]
            short = endpoint.answer(prompt, 3)
            facts, artifact, url = endpoint.facts, endpoint.artifact, endpoint._url  # type: ignore[attr-defined]

        assert {"".join(answer.pieces).strip() for answer in answers} == {expected.strip()}
        assert answers[0].pieces[:3] == short.pieces
        assert given is not None
        np.testing.assert_allclose(list(given.values()), np.sort(logprobs)[::-1][:5], atol=0.05)
        assert facts["kernel"].startswith("llama_cpp.server ")
        assert facts["server"] == "gguf/q8_0, started here"
        assert artifact is not None
        assert artifact.file_bytes == artifact.path.stat().st_size
        with pytest.raises(ModelError, match="cannot be reached"), connect(parse_server(f"{url}#m"), key=""):
            pass

    def test_a_file_that_it_cannot_load(self, tmp_path: Path) -> None:
        from quantbench.runtimes.llama_cpp.server import serve

        broken = tmp_path / "broken.gguf"
        broken.write_bytes(b"GGUF but not really")
        opened = serve(broken, threads=1, context=64, device="cpu", extra_buffers=False)
        with pytest.raises(ModelError, match=r"ended as it started \(exit code 1; its last lines were: .*broken.gguf"), opened:
            pass

    @pytest.mark.parametrize(("device", "seen"), [("cpu", ""), ("cuda:1", "2,3")])
    def test_on_the_cpu_it_sees_no_gpu(self, device: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """llama.cpp would read long prompts on one, whatever layers it was told to keep."""
        from quantbench.runtimes.llama_cpp import server as local_server

        programs: list[Program] = []

        @contextmanager
        def started(program: Program, *, patience_s: float) -> Iterator[None]:
            programs.append(program)
            yield

        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
        monkeypatch.setattr(local_server, "require_offload", lambda _: None)
        monkeypatch.setattr(local_server, "started", started)
        place = Place(port=1, key=SECRET, alias="m", folder=tmp_path)
        with local_server.serve(tmp_path / "x.gguf", threads=1, context=64, device=device, extra_buffers=True):
            env = programs[0].env(place)
            assert SECRET not in " ".join(programs[0].command(place))
        assert (env["CUDA_VISIBLE_DEVICES"], env["PATH"]) == (seen, os.environ["PATH"])
