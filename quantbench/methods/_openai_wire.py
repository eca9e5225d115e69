"""What OpenAI-compatible servers send, read with care: it is untrusted, so it is bounded, and quoted as one printable line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from quantbench.errors import ModelError
from quantbench.methods import Streamed

if TYPE_CHECKING:
    import httpx

MAX_QUOTED = 200
_MAX_EVENT_BYTES = 1 << 24


class StreamedAnswer:
    """An answer while its events arrive."""

    def __init__(self, url: str, limit: int) -> None:
        self._url = url
        self._most = 8 * limit + 64  # pieces: a server may cut tokens into bytes, but not without end
        self._pieces: list[str] = []
        self._arrivals_s: list[float] = []
        self._usage: Mapping[str, Any] = {}
        self._finished = False
        self._events = 0

    def take(self, data: bytes, arrived_s: float) -> None:
        """Add an event. ModelError when it is an error, or is none of the protocol."""
        if data == b"[DONE]":
            return
        event = parse_object(data, self._url)
        if words := error_text(event):
            raise ModelError(f"server {self._url} broke off with an error: {printable(words)}")
        self._events += 1
        if isinstance(event.get("usage"), dict):
            self._usage = event["usage"]
        choice = first_choice(event)
        if choice is None:
            return
        text = choice.get("text")
        self._finished |= bool(choice.get("finish_reason"))
        if text or (self._finished and not self._pieces):
            self._pieces.append(text if isinstance(text, str) else "")
            self._arrivals_s.append(arrived_s)
        if len(self._pieces) > self._most:
            raise ModelError(f"server {self._url} goes on after the tokens it was asked for; it ignores max_tokens")

    def finish(self) -> Streamed:
        """The whole answer; ModelError when the stream ended before it did."""
        if not self._finished:
            raise ModelError(
                f"server {self._url} dropped the stream after {self._events} events, without a finish_reason; see its log"
            )
        return Streamed(
            pieces=tuple(self._pieces),
            arrivals_s=tuple(self._arrivals_s),
            tokens=as_count(self._usage.get("completion_tokens")),
            prompt_tokens=as_count(self._usage.get("prompt_tokens")),
        )


def events(response: httpx.Response, url: str) -> Iterator[tuple[bytes, float]]:
    """The data of each server-sent event and when it arrived; lines end with a newline byte, never with U+2028 in a text."""
    rest = b""
    arrived = time.perf_counter()
    for chunk in response.iter_bytes():
        arrived = time.perf_counter()
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _MAX_EVENT_BYTES:
            raise ModelError(f"server {url} sent an event of more than {_MAX_EVENT_BYTES} bytes; it is no completions endpoint")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip(), arrived
    if rest.startswith(b"data:"):
        yield rest[5:].strip(), arrived


def top_logprobs(logprobs: object) -> dict[str, float]:
    """Log-probabilities by token text at the first position; empty where there are none."""
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
        if isinstance(text, str) and isinstance(value, int | float) and math.isfinite(value):
            found.setdefault(text, float(value))
    return found


def first_choice(body: Mapping[str, Any]) -> dict[str, Any] | None:
    choices = body.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def as_count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def json_or_none(content: bytes) -> object:
    try:
        found: object = json.loads(content)
    except ValueError:
        return None
    return found


def parse_object(content: bytes, url: str) -> dict[str, Any]:
    found = json_or_none(content)
    if not isinstance(found, dict):
        quoted = printable(content[:MAX_QUOTED].decode("utf-8", "replace"))
        raise ModelError(f"server {url} sent no JSON object but {quoted!r}; give the /v1 of an OpenAI-compatible server")
    return found


def error_text(body: object) -> str:
    """What an error body says, in the forms that servers use; empty for a body that is no error."""
    if not isinstance(body, dict):
        return ""
    error = body.get("error", body.get("detail", ""))
    if isinstance(error, dict):
        error = error.get("message") or json.dumps(error)
    return str(error or "")


def printable(text: str) -> str:
    """One short line without control characters."""
    line = "".join(sign if sign.isprintable() else " " for sign in text[: 4 * MAX_QUOTED])
    return " ".join(line.split())[:MAX_QUOTED]
