"""A server that sends whatever it likes: heads, bodies and streams, each a changed version of what a good one sends."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.scenario import ServerAddress
from quantbench.runtimes.openai.client import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hypothesis.strategies import SearchStrategy

KEY = "sk-very-secret"
TIMINGS = {"prompt_n": 3, "prompt_ms": 6.0, "predicted_n": 3, "predicted_ms": 4.0, "predicted_per_token_ms": 2.0}
USAGE = {"completion_tokens": 2, "prompt_tokens": 3}


def _reply(body: bytes, kind: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n".encode() + body


MODELS = _reply(json.dumps({"data": [{"id": "m", "owned_by": "tests"}]}).encode(), "application/json")
STREAM = _reply(
    b"".join(
        b"data: " + json.dumps(each).encode() + b"\n\n"
        for each in (
            {"choices": [{"text": "a", "finish_reason": None}]}, {"choices": [{"text": "b", "finish_reason": "length"}]},
            {"choices": [], "usage": USAGE, "timings": TIMINGS},
        )
    )
    + b"data: [DONE]\n\n",
    "text/event-stream",
)  # fmt: skip
TOP = _reply(
    json.dumps({"choices": [{"text": "a", "logprobs": {"top_logprobs": [{"a": -0.1, "b": -3.0}], "content": None}}]}).encode(),
    "application/json",
)  # fmt: skip
OLLAMA = _reply(
    json.dumps({"version": "1", "prompt_eval_count": 3, "eval_count": 2, "prompt_eval_duration": 10**6, "eval_duration": 10**6})
    .encode(),
    "application/json",
)  # fmt: skip


@dataclass
class Raw:
    """A server that sends the same bytes to whoever asks for a path, and closes."""

    port: int
    says: dict[str, bytes]

    @property
    def address(self) -> ServerAddress:
        return ServerAddress(url=f"http://127.0.0.1:{self.port}/v1", model="")


@pytest.fixture
def raw() -> Iterator[Raw]:
    """It runs in a thread until the test ends."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        server = Raw(listener.getsockname()[1], {})

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(5)
                        path = connection.recv(1 << 16).split(b" ")[1:2]
                        connection.sendall(server.says.get(path[0].decode() if path else "", b""))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def _asked(raw: Raw, said: list[str]) -> None:
    """All that is ever asked of a server."""
    with connect(raw.address, key=KEY, silence_s=2, request_s=5) as endpoint:
        answered = endpoint.answer("Say it", 4)
        said += answered.pieces
        said += endpoint.timed("Say it", 4).pieces
        endpoint.top_tokens("Say it", 5)
        endpoint.native("Say it", 4)
        said += endpoint.facts.values()


@pytest.mark.parametrize(("what", "content"), [("models", MODELS), ("stream", STREAM), ("top", TOP), ("ollama", OLLAMA)])
def test_server(fuzz: Any, contents: Any, raw: Raw, what: str, content: bytes) -> None:
    whole: Callable[..., SearchStrategy[bytes]] = contents

    def check(changed: bytes) -> None:
        raw.says = {"/v1/models": MODELS, "/v1/completions": STREAM}
        paths = {"models": "/v1/models", "stream": "/v1/completions", "top": "/v1/completions", "ollama": "/api/version"}
        raw.says[paths[what]] = changed
        if what == "ollama":
            raw.says |= {"/api/version": OLLAMA, "/api/generate": changed}
        said: list[str] = []
        if what == "top":
            with connect(raw.address, key=KEY, silence_s=2, request_s=5) as endpoint:
                endpoint.top_tokens("Say it", 5)
        else:
            _asked(raw, said)
        assert not any(KEY in text for text in said)

    fuzz(whole(content), check)
    assert fuzz.said
    assert not any(KEY in sentence for sentence in fuzz.said)
