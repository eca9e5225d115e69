"""A client of OpenAI-compatible ``/v1/completions`` endpoints: streams, log-probabilities, and the server's own timings."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from quantbench.core.errors import ModelError
from quantbench.core.protocols import Artifact, StreamDroppedError, Streamed
from quantbench.core.scenario import ServerAddress
from quantbench.runtimes.openai.deadline import bound, is_over, within
from quantbench.runtimes.openai.started import LocalServer
from quantbench.runtimes.openai.timings import of_vllm, vllm_totals
from quantbench.runtimes.openai.wire import (
    MAX_QUOTED,
    Peer,
    StreamedAnswer,
    body,
    error_text,
    events,
    first_choice,
    json_or_none,
    timings,
    top_logprobs,
)

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 300.0
"""A server may load a large model before it answers the first request."""

REQUEST_TIMEOUT_S = 600.0
"""A request and its whole answer end by then, however slowly the bytes arrive."""

_COUNTED_S = 1.0
"""A request is counted a moment after its answer has been sent."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_REFUSALS = (400, 422)
_NO_LOGPROBS = (*_REFUSALS, 500, 501)
_USAGE = {"stream_options": {"include_usage": True}}
_OWN = {"cache_prompt": False, "repeat_penalty": 1.0}
_ELSEWHERE = "the server runs where its URL points, on hardware that it does not name"
_EXTRAS = ("asked for: usage, no prompt cache, no repeat penalty, timed answers of full length", "asked for: usage", "none")
"""Fields beyond the standard, most first: where a server refuses one set, the next smaller one is sent. Most ignore them."""


class _RefusedError(ModelError):
    """The server does not accept a request's fields."""


@contextmanager
def connect(
    server: ServerAddress,
    *,
    key: str,
    facts: Mapping[str, str] | None = None,
    artifact: Artifact | None = None,
    local: LocalServer | None = None,
    silence_s: float = SILENCE_TIMEOUT_S,
    request_s: float = REQUEST_TIMEOUT_S,
) -> Iterator[CompletionsEndpoint]:
    """Find out what ``server`` is and what it serves, unless ``facts`` say so already; ModelError if it cannot be used.

    ``key`` is sent as a bearer token and never stored; redirects are not followed, as they would carry it elsewhere. A request
    fails after ``silence_s`` without a byte, and after ``request_s`` in all.
    ``local`` is the server if it was started here.
    """
    import httpx

    with httpx.Client(
        headers={"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})},
        timeout=httpx.Timeout(silence_s, connect=min(CONNECT_TIMEOUT_S, silence_s)),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        follow_redirects=False,
        trust_env=urlsplit(server.url).hostname not in _LOOPBACK,  # a proxy cannot know this machine's loopback
    ) as client:
        bound(client)
        endpoint = CompletionsEndpoint(client, server, key=key, artifact=artifact, request_s=request_s, local=local)
        endpoint.introduce(facts)
        yield endpoint


class CompletionsEndpoint:
    """An Endpoint over one HTTP client."""

    def __init__(
        self, client: httpx.Client, server: ServerAddress, *, key: str, artifact: Artifact | None, request_s: float,
        local: LocalServer | None,
    ) -> None:  # fmt: skip
        """Call ``introduce`` before anything else."""
        self._client = client
        self._url = server.url
        self._peer = Peer(server.url, key)
        self._request_s = request_s
        self._artifact = artifact
        self._local = local
        self._model = server.model
        self._facts: dict[str, str] = {}
        self._is_ollama = False
        self._counts = True
        self._level = 0

    def introduce(self, facts: Mapping[str, str] | None) -> None:
        """Find out the server's name and its model, unless ``facts`` give them."""
        if facts is None:
            facts = {**self._discover(), "elsewhere": _ELSEWHERE}
        self._facts = {"server": self._url, "served_model": self._peer.quote(self._model), **facts}

    @property
    def facts(self) -> Mapping[str, str]:
        """See Endpoint."""
        return {**self._facts, "request_extras": _EXTRAS[self._level]}

    @property
    def artifact(self) -> Artifact | None:
        """See Endpoint."""
        return self._artifact

    @property
    def pid(self) -> int | None:
        """See Endpoint."""
        return self._local.pid if self._local else None

    def answer(self, prompt: str, limit: int, *, full_length: bool = False) -> Streamed:
        """See Endpoint. Fields beyond the standard are sent, and left out from then on if the server refuses them."""
        standard = {"model": self._model, "prompt": prompt, "max_tokens": limit, "temperature": 0, "stream": True}
        own = {**_OWN, "cache_salt": uuid4().hex, **({"ignore_eos": True} if full_length else {})}
        extras: tuple[dict[str, Any], ...] = ({**_USAGE, **own}, _USAGE, {})
        for level in range(self._level, len(extras)):
            try:
                streamed = self._stream({**standard, **extras[level]}, prompt, limit)
            except _RefusedError:
                if level + 1 == len(extras):
                    raise
            else:
                self._level = level
                return streamed
        raise AssertionError("the last level returns or raises")

    def timed(self, prompt: str, limit: int) -> Streamed:
        """See Endpoint. llama-server's timings come with the answer, vLLM's are what it has counted after it and not before."""
        before = self._settled_totals()
        started = time.perf_counter()
        streamed = self.answer(prompt, limit, full_length=True)
        elapsed_s = time.perf_counter() - started
        if not before:
            return streamed
        deadline = time.monotonic() + _COUNTED_S
        while (after := self._totals()).get("requests") == before["requests"] and time.monotonic() < deadline:
            time.sleep(_COUNTED_S / 100)
        self._counts = after.get("requests") != before["requests"]  # else another process answers than counts
        return replace(streamed, native=of_vllm(before, after, elapsed_s, streamed.tokens))

    def top_tokens(self, prompt: str, k: int) -> Mapping[str, float] | None:
        """See Endpoint. The two forms that servers use are read: OpenAI's own, and llama-server's list of tokens."""
        model = (self._local.scoring if self._local else "") or self._model
        asked = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": k}
        status, content, _ = self._exchange("POST", f"{self._url}/completions", asked)
        if status in _NO_LOGPROBS:
            return None
        self._check(status, content)
        choice = first_choice(self._peer.parse(content))
        found = top_logprobs((choice or {}).get("logprobs"), self._peer)
        best = sorted(found.items(), key=lambda each: -each[1])[:k]
        return dict(best) or None

    def native(self, prompt: str, limit: int) -> Mapping[str, float]:
        """See Endpoint. Ollama's ``/api/generate`` counts tokens and nanoseconds; the prompt goes in without a template."""
        if not self._is_ollama:
            return {}
        options = {"temperature": 0, "num_predict": limit, "repeat_penalty": 1.0}
        asked = {"model": self._model, "prompt": prompt, "stream": False, "raw": True, "options": options}
        started = time.perf_counter()
        status, content, _ = self._exchange("POST", f"{self._root}/api/generate", asked)
        elapsed_s = time.perf_counter() - started
        self._check(status, content)
        return timings(self._peer.parse(content), self._peer, prompt, limit, elapsed_s)

    def _settled_totals(self) -> dict[str, float]:
        """The counters when two looks agree: an answer that has just been sent is counted a moment later."""
        totals, deadline = self._totals(), time.monotonic() + _COUNTED_S
        while totals and (again := self._totals()) != totals and time.monotonic() < deadline:
            totals = again
        return totals

    def _totals(self) -> dict[str, float]:
        """VLLM's counters; nothing of a server that does not show any, which is not asked again."""
        totals: dict[str, float] = {}
        if self._counts:
            with suppress(ModelError):  # one that answers nonsense here may still be measured
                status, content, _ = self._exchange("GET", f"{self._root}/metrics")
                totals = vllm_totals(content.decode("utf-8", "replace")) if status == 200 else {}
            self._counts = bool(totals)
        return totals

    @property
    def _root(self) -> str:
        return self._url.removesuffix("/v1")

    def _discover(self) -> dict[str, str]:
        """Ask for the model if none was named, and for the server's own name."""
        status, content, headers = self._exchange("GET", f"{self._url}/models")
        listed: object = None
        if status not in (404, 405) or not self._model:
            self._check(status, content)
            listed = self._peer.parse(content).get("data")
        version_status, version, _ = self._exchange("GET", f"{self._root}/api/version")
        models = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        names = [self._peer.quote(str(each.get("id", ""))) for each in models]
        if not self._model:
            if len(names) != 1 or not names[0]:
                offers = f"serves {len(names)} models ({', '.join(names)[:MAX_QUOTED]})" if names else "names no model"
                raise ModelError(f"server {self._url} {offers}; name one after it: {self._url}#MODEL")
            self._model = str(models[0]["id"])
        number = json_or_none(version) if version_status == 200 else None
        if isinstance(number, dict) and isinstance(number.get("version"), str):
            self._is_ollama = True
            return {"kernel": f"ollama {self._peer.quote(number['version'])}"}
        owner = next((str(each.get("owned_by", "")) for each in models if each.get("id") == self._model), "")
        return {"kernel": self._peer.quote(owner or headers.get("server", ""))}

    def _exchange(self, verb: str, url: str, asked: Mapping[str, Any] | None = None) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, body and headers of an answer that is not streamed."""
        with self._plain_errors(), self._response(verb, url, asked) as (response, _):
            return response.status_code, body(response, self._peer), response.headers

    def _stream(self, asked: Mapping[str, Any], prompt: str, limit: int) -> Streamed:
        """One streamed answer. Reads past ``[DONE]``, so that the connection can be used again."""
        answer = StreamedAnswer(self._peer, prompt, limit, every_token=self._local is not None)
        with self._plain_errors(), self._response("POST", f"{self._url}/completions", asked) as (response, started):
            if response.status_code != 200:
                self._check(response.status_code, body(response, self._peer))
            kind = response.headers.get("content-type", "")
            if "text/event-stream" not in kind:
                raise ModelError(
                    f"server {self._url} does not stream: it answered with {self._peer.quote(kind) or 'no content type'}; "
                    "give a /v1 endpoint that does"
                )
            for data, arrived in events(response, self._peer):
                answer.take(data, arrived - started)
        return answer.finish()

    @contextmanager
    def _response(self, verb: str, url: str, asked: Mapping[str, Any] | None) -> Iterator[tuple[httpx.Response, float]]:
        """The response, and when it was asked for: once more, if the server closed the connection instead of answering.

        llama-server closes it after each stream without saying so, and may do that just as the next request is sent on it.
        """
        import httpx

        with ExitStack() as stack:
            started = time.perf_counter()
            try:
                response = stack.enter_context(self._client.stream(verb, url, json=asked))
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                started = time.perf_counter()
                response = stack.enter_context(self._client.stream(verb, url, json=asked))
            yield response, started

    def _check(self, status: int, content: bytes) -> None:
        """Raise ModelError, saying why, for any status but 200."""
        if status == 200:
            return
        head = f"server {self._url}"
        said = self._said(content)
        if status in (401, 403):
            sent = "rejected the key" if self._peer.key else "requires a key, but none was sent"
            raise ModelError(f"{head} {sent} ({status}); set QUANTBENCH_SERVER_KEY")
        if status == 404:
            model = f" and that it serves {self._peer.quote(self._model)!r}" if self._model else ""
            raise ModelError(f"{head} does not have this address (404{said}); check that the URL ends in /v1{model}")
        if 300 <= status < 400:
            raise ModelError(f"{head} redirects elsewhere ({status}), which is not followed; give the final URL")
        if status in _REFUSALS:
            raise _RefusedError(f"{head} refused the request ({status}{said}); check the model's name and the lengths")
        if status == 429:
            raise ModelError(f"{head} limits its requests (429{said}); wait, or lower --concurrency")
        raise ModelError(f"{head} failed ({status}{said}); look at the server's log")

    def _said(self, content: bytes) -> str:
        """The error's own words, without the key if they repeat it."""
        words = error_text(json_or_none(content)) or content.decode("utf-8", "replace")
        return f": {self._peer.quote(words)}" if words.strip() else ""

    def _late(self) -> str:
        """Which of the two timeouts expired."""
        if is_over():
            return f"had not finished its answer after {self._request_s:g} s"
        return f"sent nothing for {self._client.timeout.read or 0.0:g} s"

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        import httpx

        head = f"server {self._url}"
        with within(self._request_s):
            try:
                yield
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                why = self._peer.quote(str(error)) or "no answer"
                raise ModelError(f"{head} cannot be reached ({why}); start it, or check host and port") from error
            except httpx.TimeoutException as error:
                raise ModelError(f"{head} {self._late()}; see whether it is overloaded, or ask for less") from error
            except httpx.HTTPError as error:
                why = self._peer.quote(str(error)) or type(error).__name__
                raise StreamDroppedError(
                    f"{head} dropped the connection before its answer was complete ({why}); see its log"
                ) from error
