"""What OpenAI-compatible servers send, read with care: being untrusted, it is bounded, and quoted as one printable line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantbench.core.errors import ModelError
from quantbench.core.outside import parse_json
from quantbench.core.protocols import StreamDroppedError, Streamed
from quantbench.core.text import one_line
from quantbench.runtimes.openai.timings import of_llama_server, possible

if TYPE_CHECKING:
    import httpx

MAX_QUOTED = 200
_MAX_BODY_BYTES = 1 << 24
_MAX_EVENT_BYTES = 1 << 20
_MAX_STREAM_BYTES = 1 << 26
_MAX_ERROR_BYTES = 1 << 16
"""At most this much of an error response is read."""

_SECRET_CHARACTERS = 8
"""A shorter key is a placeholder such as ``none``, and is not looked for in a model's answers."""

_LEAST_LOGPROB = -1000.0
"""No model gives a lower one: float32 logits do not differ by this, and servers write -9999 for "no value"."""

_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class Peer:
    """A server: how a sentence names it, and the key that must not be repeated from its words."""

    url: str
    key: str = ""

    def hide(self, text: str) -> str:
        """``text`` without the key."""
        return text.replace(self.key, "***") if self.key else text

    def hide_in_answer(self, pieces: Sequence[str]) -> tuple[str, ...]:
        """The pieces; if their text contains the key, all of it without the key in the first piece, and the others empty."""
        whole = "".join(pieces)
        if len(self.key) < _SECRET_CHARACTERS or self.key not in whole:
            return tuple(pieces)
        return (self.hide(whole), *[""] * (len(pieces) - 1))

    def quote(self, text: str) -> str:
        """One short printable line of ``text``, without the key."""
        return one_line(self.hide(text)[: 4 * MAX_QUOTED])[:MAX_QUOTED]

    def parse(self, content: bytes) -> dict[str, Any]:
        """The JSON object that was sent; ModelError, with its first words, for anything else."""
        found = json_or_none(content)
        if not isinstance(found, dict):
            quoted = self.quote(content[: 8 * MAX_QUOTED].decode("utf-8", "replace"))
            raise ModelError(
                f"server {self.url} sent {quoted!r} instead of a JSON object; give the /v1 of an OpenAI-compatible server"
            )
        return found

    def count(self, value: object, most: int, what: str) -> int | None:
        """A count of tokens; None if ``value`` is not a count, ModelError if it is above ``most``."""
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            return None
        if value > most:
            shown = str(value) if value < 10**9 else "more than 10^9"
            raise ModelError(
                f"server {self.url} counts {shown} {what}, where {most} are the most that there can be; "
                "its counts cannot be used"
            )
        return value


class StreamedAnswer:
    """An answer whose events are still arriving."""

    def __init__(self, peer: Peer, prompt: str, limit: int, *, every_token: bool = False) -> None:
        """Nothing has arrived yet; at most ``limit`` tokens are read.

        With ``every_token`` the server is known to send an event for each, also for one without a text of its own.
        """
        self._peer = peer
        self._prompt = prompt
        self._limit = limit
        self._every_token = every_token
        self._most = 8 * limit + 64  # pieces: a server may split tokens into bytes, but not for ever
        self._pieces: list[str] = []
        self._arrivals_s: list[float] = []
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}
        self._finished_s: float | None = None
        self._events = 0

    def take(self, data: bytes, arrived_s: float) -> None:
        """Add an event. ModelError if it reports an error, or does not follow the protocol."""
        if data == b"[DONE]":
            return
        event = self._peer.parse(data)
        if words := error_text(event):
            raise ModelError(f"server {self._peer.url} broke off with an error: {self._peer.quote(words)}")
        self._events += 1
        if self._events > 2 * self._most:
            raise ModelError(f"server {self._peer.url} sends events without end; it is not a completions endpoint")
        if isinstance(event.get("usage"), dict):
            self._usage = event["usage"]
        if isinstance(event.get("timings"), dict):
            self._timings = event["timings"]
        choice = first_choice(event)
        if choice is None:
            return
        text = choice.get("text")
        if choice.get("finish_reason"):
            self._finished_s = arrived_s
        if text or (self._finished_s is None and self._every_token) or (self._finished_s is not None and not self._pieces):
            self._pieces.append(text if isinstance(text, str) else "")
            self._arrivals_s.append(arrived_s)
        if len(self._pieces) > self._most:
            raise ModelError(f"server {self._peer.url} goes on after the tokens it was asked for; it ignores max_tokens")

    def finish(self) -> Streamed:
        """The whole answer; ModelError if the stream ended too early, or if its counts are impossible."""
        if self._finished_s is None:
            raise StreamDroppedError(
                f"server {self._peer.url} dropped the stream after {self._events} events, without a finish_reason; see its log"
            )
        tokens = self._peer.count(self._usage.get("completion_tokens"), self._limit, "tokens of an answer")
        if self._every_token and (tokens or 0) > len(self._pieces):  # an end of sequence, which finished it
            self._pieces.append("")
            self._arrivals_s.append(self._finished_s)
        return Streamed(
            pieces=self._peer.hide_in_answer(self._pieces),
            arrivals_s=tuple(self._arrivals_s),
            tokens=tokens,
            prompt_tokens=self._peer.count(
                self._usage.get("prompt_tokens"), most_prompt_tokens(self._prompt), "tokens of a prompt"
            ),
            native=of_llama_server(self._timings, self._finished_s),
        )


def events(response: httpx.Response, peer: Peer) -> Iterator[tuple[bytes, float]]:
    """The data of each server-sent event and when it arrived. Only a newline byte ends a line, not U+2028 in a text.

    ModelError if a line, data or not, or the whole stream is longer than any answer could be.
    """
    rest = b""
    total = 0
    arrived = time.perf_counter()
    for chunk in _raw(response, peer):
        arrived = time.perf_counter()
        total += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        if max(map(len, (*lines, rest))) > _MAX_EVENT_BYTES:
            raise ModelError(
                f"server {peer.url} sent an event of more than {_MAX_EVENT_BYTES} bytes; it is not a completions endpoint"
            )
        if total > _MAX_STREAM_BYTES:
            raise ModelError(f"server {peer.url} streams more than {_MAX_STREAM_BYTES} bytes; it is not a completions endpoint")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip(), arrived
    if rest.startswith(b"data:"):
        yield rest[5:].strip(), arrived


def body(response: httpx.Response, peer: Peer) -> bytes:
    """The whole body of an answer, or the first part of an error's; ModelError if it is too long."""
    most = _MAX_BODY_BYTES if response.status_code == 200 else _MAX_ERROR_BYTES
    found = bytearray()
    for chunk in _raw(response, peer):
        found += chunk
        if len(found) > most:
            if response.status_code != 200:
                break
            raise ModelError(f"server {peer.url} sent a body of more than {most} bytes; it is not a completions endpoint")
    return bytes(found[:most])


def _raw(response: httpx.Response, peer: Peer) -> Iterator[bytes]:
    """The bytes as sent. Compression was declined: a few compressed bytes could stand for gigabytes."""
    coding = response.headers.get("content-encoding", "identity")
    if coding.strip().lower() not in ("", "identity"):
        raise ModelError(f"server {peer.url} compresses its answer ({peer.quote(coding)}), which was asked for as it is")
    chunks: Iterator[bytes] = response.iter_raw()
    return chunks


def most_prompt_tokens(prompt: str) -> int:
    """More tokens than any tokenizer makes of a prompt: two per byte, and some for a template around it."""
    return 2 * len(prompt.encode("utf-8", "replace")) + 64


def timings(said: Mapping[str, Any], peer: Peer, prompt: str, limit: int, elapsed_s: float) -> dict[str, float]:
    """Ollama's counts and nanoseconds as tokens and seconds; empty where one is missing.

    ModelError for counts beyond what was asked, for seconds beyond the ``elapsed_s`` of the request, and for rates beyond any
    hardware.
    """
    prompt_tokens = peer.count(said.get("prompt_eval_count"), most_prompt_tokens(prompt), "tokens of a prompt")
    tokens = peer.count(said.get("eval_count"), limit, "tokens of an answer")
    prompt_ns, decode_ns = _nanoseconds(said.get("prompt_eval_duration")), _nanoseconds(said.get("eval_duration"))
    if not (prompt_ns and decode_ns and prompt_tokens and tokens):
        return {}
    found = {"prompt_tokens": prompt_tokens, "prefill_s": prompt_ns / 1e9, "tokens": tokens, "decode_s": decode_ns / 1e9}
    if not possible(found, elapsed_s):
        raise ModelError(
            f"server {peer.url} reports impossible timings: {prompt_tokens} tokens read in {found['prefill_s']:.3g} s and "
            f"{tokens} written in {found['decode_s']:.3g} s, in a request of {elapsed_s:.3g} s; its timings cannot be used"
        )
    return found


def _nanoseconds(value: object) -> int | None:
    """A whole number of nanoseconds, at most a century, so that a float can hold the quotient."""
    most = 10**9 * 3600 * 24 * 36525
    return min(value, most) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def top_logprobs(logprobs: object, peer: Peer) -> dict[str, float]:
    """Log-probabilities by token text at the first position; empty if there are none, ModelError if they are not valid."""
    if not isinstance(logprobs, dict):
        return {}
    if isinstance(content := logprobs.get("content"), list):  # llama-server
        entries = content[0].get("top_logprobs") if content and isinstance(content[0], dict) else None
        listed = [each for each in entries if isinstance(each, dict)] if isinstance(entries, list) else []
        pairs = [(each.get("token"), each.get("logprob")) for each in listed]
    else:
        positions = logprobs.get("top_logprobs")
        first = positions[0] if isinstance(positions, list) and positions else None
        pairs = list(first.items()) if isinstance(first, dict) else []
    found: dict[str, float] = {}
    for text, value in pairs:
        if isinstance(text, str) and isinstance(value, int | float) and not isinstance(value, bool):
            if not _LEAST_LOGPROB <= value <= _ROUNDING:  # nan is refused as well
                raise ModelError(
                    f"server {peer.url} sent {_shown(value)} as a log-probability, which lies between {_LEAST_LOGPROB:g} "
                    "and 0; its log-probabilities cannot be used"
                )
            found.setdefault(text, min(float(value), 0.0))
    if sum(map(math.exp, found.values())) > 1 + 10 * _ROUNDING:
        raise ModelError(
            f"server {peer.url} sent log-probabilities of one position whose probabilities add up to more than 1; "
            "its log-probabilities cannot be used"
        )
    return found


def _shown(value: float) -> str:
    """A number, however large."""
    try:
        return f"{float(value):g}"
    except OverflowError:
        return "a number beyond float64"


def first_choice(event: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first choice of a completion; None if it has none."""
    choices = event.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def json_or_none(content: bytes) -> object:
    """The decoded JSON; None if it is not JSON."""
    try:
        found: object = parse_json(content)
    except ValueError:
        return None
    return found


def error_text(said: object) -> str:
    """The message of an error body, in any of the forms that servers use; empty if the body is not an error."""
    if not isinstance(said, dict):
        return ""
    error = said.get("error", said.get("detail", ""))
    if isinstance(error, dict):
        error = error.get("message") or json.dumps(error)
    return str(error or "")
