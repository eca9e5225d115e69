"""A client of OpenAI-compatible ``/v1/completions`` endpoints: streams, log-probabilities, and Ollama's own timings."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from quantbench.errors import ModelError
from quantbench.methods import Artifact, Streamed
from quantbench.methods._openai_wire import (
    MAX_QUOTED,
    StreamedAnswer,
    as_count,
    error_text,
    events,
    first_choice,
    json_or_none,
    parse_object,
    printable,
    top_logprobs,
)
from quantbench.scenario import ServerAddress

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 300.0
"""A server may load a large model before it answers the first request."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_REFUSALS = (400, 422)
_NO_LOGPROBS = (*_REFUSALS, 500, 501)
_USAGE = {"stream_options": {"include_usage": True}}
_OWN = {"cache_prompt": False, "repeat_penalty": 1.0}
_ELSEWHERE = "the server runs where its URL points, on hardware that it does not name"
_EXTRAS = ("asked for: usage, no prompt cache, no repeat penalty", "asked for: usage", "none")
"""Asked besides the standard, most first: the next less where a server refuses; one that knows no such field ignores it."""


class _RefusedError(ModelError):
    """The server does not accept a request's fields."""


@contextmanager
def connect(
    server: ServerAddress,
    *,
    key: str,
    facts: Mapping[str, str] | None = None,
    artifact: Artifact | None = None,
    scoring_model: str = "",
    silence_s: float = SILENCE_TIMEOUT_S,
) -> Iterator[CompletionsEndpoint]:
    """Find out what ``server`` is and serves, unless ``facts`` say so already; raises ModelError where it cannot be used.

    ``key`` is sent as a bearer token and kept nowhere; redirects are not followed, for they would carry it elsewhere.
    ``scoring_model`` is the name to ask for log-probabilities, where it is another.
    """
    import httpx

    with httpx.Client(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(silence_s, connect=min(CONNECT_TIMEOUT_S, silence_s)),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        follow_redirects=False,
        trust_env=urlsplit(server.url).hostname not in _LOOPBACK,  # a proxy cannot know this machine's loopback
    ) as client:
        endpoint = CompletionsEndpoint(client, server, key, artifact)
        endpoint.introduce(facts, scoring_model)
        yield endpoint


class CompletionsEndpoint:
    """An Endpoint over one HTTP client."""

    def __init__(self, client: httpx.Client, server: ServerAddress, key: str, artifact: Artifact | None) -> None:
        """``introduce`` must follow."""
        self._client = client
        self._url = server.url
        self._key = key
        self._artifact = artifact
        self._model = self._scoring_model = server.model
        self._facts: dict[str, str] = {}
        self._is_ollama = False
        self._level = 0

    def introduce(self, facts: Mapping[str, str] | None, scoring_model: str) -> None:
        """Learn the server's name and its model, unless ``facts`` tell them."""
        if facts is None:
            facts = {**self._discover(), "elsewhere": _ELSEWHERE}
        self._scoring_model = scoring_model or self._model
        self._facts = {"server": self._url, "served_model": self._model, **facts}

    @property
    def facts(self) -> Mapping[str, str]:
        """See Endpoint."""
        return {**self._facts, "request_extras": _EXTRAS[self._level]}

    @property
    def artifact(self) -> Artifact | None:
        """See Endpoint."""
        return self._artifact

    def answer(self, prompt: str, limit: int) -> Streamed:
        """See Endpoint. Fields beyond the standard are asked for, and left out from then on where the server refuses them."""
        body = {"model": self._model, "prompt": prompt, "max_tokens": limit, "temperature": 0, "stream": True}
        extras: tuple[dict[str, Any], ...] = ({**_USAGE, **_OWN, "cache_salt": uuid4().hex}, _USAGE, {})
        for level in range(self._level, len(extras)):
            try:
                streamed = self._stream({**body, **extras[level]}, limit)
            except _RefusedError:
                if level + 1 == len(extras):
                    raise
            else:
                self._level = level
                return streamed
        raise AssertionError("the last level returns or raises")

    def top_tokens(self, prompt: str, k: int) -> Mapping[str, float] | None:
        """See Endpoint. The two forms that servers use are read: OpenAI's own, and llama-server's list of tokens."""
        body = {"model": self._scoring_model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": k}
        with self._plain_errors():
            response = self._client.post(f"{self._url}/completions", json=body)
            if response.status_code in _NO_LOGPROBS:
                return None
            self._check(response)
        choice = first_choice(parse_object(response.content, self._url))
        found = top_logprobs((choice or {}).get("logprobs"))
        best = sorted(found.items(), key=lambda each: -each[1])[:k]
        return dict(best) or None

    def native(self, prompt: str, limit: int) -> Mapping[str, float]:
        """See Endpoint. Ollama's ``/api/generate`` counts tokens and nanoseconds; the prompt goes in without a template."""
        if not self._is_ollama:
            return {}
        options = {"temperature": 0, "num_predict": limit, "repeat_penalty": 1.0}
        body = {"model": self._model, "prompt": prompt, "stream": False, "raw": True, "options": options}
        with self._plain_errors():
            response = self._client.post(f"{self._root}/api/generate", json=body)
            self._check(response)
        said = parse_object(response.content, self._url)
        prompt_ns, decode_ns = as_count(said.get("prompt_eval_duration")), as_count(said.get("eval_duration"))
        prompt_tokens, tokens = as_count(said.get("prompt_eval_count")), as_count(said.get("eval_count"))
        if not (prompt_ns and decode_ns and prompt_tokens and tokens):
            return {}
        return {
            "prompt_tokens": prompt_tokens, "prefill_s": prompt_ns / 1e9, "tokens": tokens, "decode_s": decode_ns / 1e9,
        }  # fmt: skip

    @property
    def _root(self) -> str:
        return self._url.removesuffix("/v1")

    def _discover(self) -> dict[str, str]:
        """Ask for the model where none was named, and for the server's own name."""
        with self._plain_errors():
            response = self._client.get(f"{self._url}/models")
            if response.status_code not in (404, 405) or not self._model:
                self._check(response)
                body: Mapping[str, Any] = parse_object(response.content, self._url)
            else:
                body = {}
            version = self._client.get(f"{self._root}/api/version")
        listed = body.get("data")
        models = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        names = [printable(str(each.get("id", ""))) for each in models]
        if not self._model:
            if len(names) != 1 or not names[0]:
                offers = f"serves {len(names)} models ({', '.join(names)[:MAX_QUOTED]})" if names else "names no model"
                raise ModelError(f"server {self._url} {offers}; name one after it: {self._url}#MODEL")
            self._model = str(models[0]["id"])
        number = json_or_none(version.content) if version.status_code == 200 else None
        if isinstance(number, dict) and isinstance(number.get("version"), str):
            self._is_ollama = True
            return {"kernel": f"ollama {printable(number['version'])}"}
        owner = next((str(each.get("owned_by", "")) for each in models if each.get("id") == self._model), "")
        return {"kernel": printable(owner or response.headers.get("server", ""))}

    def _stream(self, body: Mapping[str, Any], limit: int) -> Streamed:
        """One streamed answer. Reads on after ``[DONE]``, so that the connection can be used again."""
        answer = StreamedAnswer(self._url, limit)
        started = time.perf_counter()
        with self._plain_errors(), self._client.stream("POST", f"{self._url}/completions", json=body) as response:
            if response.status_code != 200:
                response.read()
            self._check(response)
            kind = response.headers.get("content-type", "")
            if "text/event-stream" not in kind:
                raise ModelError(
                    f"server {self._url} does not stream: it answered with {printable(kind) or 'no content type'}; "
                    "give a /v1 endpoint that does"
                )
            for data, arrived in events(response, self._url):
                answer.take(data, arrived - started)
        return answer.finish()

    def _check(self, response: httpx.Response) -> None:
        """Raise ModelError, in words, for any status but 200."""
        status = response.status_code
        if status == 200:
            return
        head = f"server {self._url}"
        said = self._said(response)
        if status in (401, 403):
            sent = "refused the key that was sent" if self._key else "wants a key and none was sent"
            raise ModelError(f"{head} {sent} ({status}); set QUANTBENCH_SERVER_KEY")
        if status == 404:
            model = f" and that it serves {printable(self._model)!r}" if self._model else ""
            raise ModelError(f"{head} has no such place (404{said}); check that the URL ends in /v1{model}")
        if 300 <= status < 400:
            raise ModelError(f"{head} redirects elsewhere ({status}), which is not followed; give the final URL")
        if status in _REFUSALS:
            raise _RefusedError(f"{head} refused the request ({status}{said}); check the model's name and the lengths")
        if status == 429:
            raise ModelError(f"{head} limits its requests (429{said}); wait, or lower --concurrency")
        raise ModelError(f"{head} failed ({status}{said}); look at the server's log")

    def _said(self, response: httpx.Response) -> str:
        """The error's own words, without the key in case they repeat it."""
        words = error_text(json_or_none(response.content)) or response.text
        words = words.replace(self._key, "***") if self._key else words
        return f": {printable(words)}" if words.strip() else ""

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        import httpx

        head = f"server {self._url}"
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            why = printable(str(error)) or "no answer"
            raise ModelError(f"{head} cannot be reached ({why}); start it, or check host and port") from error
        except httpx.TimeoutException as error:
            silence_s = self._client.timeout.read or 0.0
            raise ModelError(
                f"{head} sent nothing for {silence_s:g} s; see whether it is overloaded, or ask for less"
            ) from error
        except httpx.HTTPError as error:
            why = printable(str(error)) or type(error).__name__
            raise ModelError(f"{head} dropped the connection before its answer was complete ({why}); see its log") from error
