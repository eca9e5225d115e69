"""A hostile server, measured by the real command: the key goes nowhere else, and what it says stays text everywhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from quantbench.cli.app import app

from .conftest import Command

KEY = "sk-only-for-the-server"
EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\x1b]0;title\x07\x1b[31m\u202e|[x](javascript:alert(1))'
"""Markup, commands for a terminal, a direction override, and what ends a cell and begins a link in Markdown."""

LOOKS = 3
"""How often the processes are looked through while it is asked."""

COMMANDS = [0x1B, 7, 0x9B, 0x202E]


@dataclass
class Seen:
    """What the server was sent, and who had the key among the arguments of a process meanwhile."""

    url: str = ""
    keys: set[str] = field(default_factory=set)
    arguments: list[set[str]] = field(default_factory=list)


def processes_with(text: str) -> set[str]:
    """Command lines of this machine that hold ``text``."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode("utf-8", "replace")
        except OSError:  # it has ended
            continue
        if text in line:
            found.add(line)
    return found


@pytest.fixture(scope="module")
def hostile() -> Iterator[Seen]:
    """A server that streams EVIL, is named so, and says so in its headers."""
    seen = Seen()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def version_string(self) -> str:
            return "<b>evil</b>"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            """Keep quiet."""

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self._say(200, json.dumps({"data": [{"id": EVIL, "owned_by": EVIL}]}).encode(), "application/json")
            else:
                self._say(404, EVIL.encode(), "text/html")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.keys.add(self.headers["authorization"])
            if len(seen.arguments) < LOOKS:
                seen.arguments.append(processes_with(KEY))
            texts = [EVIL] * min(body.get("max_tokens") or 1, 8)
            events = [{"choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in texts]
            events.append({"choices": [{"index": 0, "text": KEY, "finish_reason": "length"}]})
            lines = [b"data: " + json.dumps(each).encode() + b"\n\n" for each in events]
            self._say(200, b"".join(lines) + b"data: [DONE]\n\n", "text/event-stream")

        def _say(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    seen.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield seen
    server.shutdown()
    thread.join()
    server.server_close()


class Reader(HTMLParser):
    """The elements of a page, and its inline programs."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.active: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        links = ("href", "src", "action")
        self.active += [name for name, value in attrs if name.startswith("on") or (name in links and (value or "")[:1] != "#")]


def test_the_key_is_kept_and_what_a_server_says_stays_text(
    quantbench: Command, hostile: Seen, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    run = quantbench(
        "run", f"--model={hostile.url}", "--method=server", "--prompts=two", "--profile=quick", "--no-energy",
        "--output-tokens=4", "--concurrency=1", "--keep-jobs=jobs", "--benchmark-json=here.json",
        QUANTBENCH_SERVER_KEY=KEY, QUANTBENCH_CACHE=str(cache),
    )  # fmt: skip

    assert run.returncode == 0, run.stdout + run.stderr
    assert hostile.keys == {f"Bearer {KEY}"}
    assert hostile.arguments == [set()] * LOOKS
    kept = [path for place in (here, cache) for path in place.rglob("*") if path.is_file()]
    assert {"here.json", "job.json"} <= {path.name for path in kept}
    assert [path for path in kept if KEY.encode() in path.read_bytes()] == []
    assert KEY not in run.stdout + run.stderr
    rows = {table: pd.read_parquet(here / "results" / table).to_csv() for table in ("scenarios", "samples", "runs")}
    assert not [table for table, text in rows.items() if KEY in text]
    assert "alert(1)" in rows["scenarios"], "it is called what it says"

    monkeypatch.chdir(here)
    said = [run.stdout, run.stderr]
    for words in (
        ("tables", "all"), ("tables", "served", "--format=md"), ("compare", "results", "results", "--format=md"),
        ("report", "-o", "page.html"), ("export", "--to", "jsonl"),
    ):  # fmt: skip
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code in (0, 4), (words, done.output)
        said += [done.stdout, done.stderr]
    assert not set(map(chr, COMMANDS)) & set("".join(said))
    reader = Reader()
    page = (here / "page.html").read_text(encoding="utf-8")
    reader.feed(page)
    assert "alert(1)" in page
    assert "img" not in reader.tags
    assert reader.tags.count("script") == page.count("<script")
    assert reader.active == []
