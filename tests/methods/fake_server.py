"""What stands in for llama-server and vLLM where a test is about starting and ending them: a program with their faces.

Its further flags: ``--die WORDS`` ends it at once, ``--deaf`` never becomes healthy, ``--child FILE`` starts a process that
would outlive it and writes both ids there, ``--tell FILE`` writes its arguments and environment there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TIMINGS = {"prompt_n": 3, "prompt_ms": 6.0, "predicted_n": 3, "predicted_ms": 4.0, "predicted_per_token_ms": 2.0}


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int)
    parser.add_argument("--alias", "--served-model-name", dest="alias")
    for name in ("--die", "--child", "--tell"):
        parser.add_argument(name)
    parser.add_argument("--deaf", action="store_true")
    asked, _ = parser.parse_known_args()
    if asked.tell:
        Path(asked.tell).write_text(json.dumps({"arguments": sys.argv, "env": dict(os.environ)}))
    if asked.die:
        sys.exit(asked.die)
    if asked.child:
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        Path(asked.child).write_text(json.dumps([os.getpid(), child.pid]))
    key = os.environ.get("LLAMA_API_KEY") or os.environ["VLLM_API_KEY"]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            """Keep quiet."""

        def do_GET(self) -> None:
            allowed = self.path == "/health" or self.headers["authorization"] == f"Bearer {key}"
            body = {"data": [{"id": asked.alias}], "build_info": "b1-abc", "version": "0.0"}
            self._say(503 if asked.deaf else 200 if allowed else 401, json.dumps(body).encode(), "application/json")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            events: list[dict[str, Any]] = [{"choices": [{"text": text, "finish_reason": None}]} for text in "abc"]
            events.append({"choices": [{"text": "", "finish_reason": "length"}], "timings": TIMINGS})
            body = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events)
            self._say(200, body + b"data: [DONE]\n\n", "text/event-stream")

        def _say(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer(("127.0.0.1", asked.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
