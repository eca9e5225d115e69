"""A pytest plugin that writes down after each test what this process holds; see ``soak``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil

_SEEN: list[dict[str, int]] = []


def pytest_runtest_logfinish() -> None:
    """Memory in bytes, open handles, threads, and children with theirs."""
    me = psutil.Process()
    _SEEN.append(
        {
            "memory": me.memory_info().rss, "handles": me.num_fds(), "threads": me.num_threads(),
            "children": len(me.children(recursive=True)),
        }
    )  # fmt: skip


def pytest_sessionfinish() -> None:
    """Write it all to the file that SOAK_OUT names."""
    Path(os.environ["SOAK_OUT"]).write_text(json.dumps(_SEEN))
