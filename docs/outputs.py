"""Rewrites the output that README.md and the pages show, by running the commands above it.

    python docs/outputs.py [PAGE ...]

Without a name it takes every page that shows output. A comment below a block of commands asks for it::

    ```console
    quantbench tables
    ```
    <!-- output -->
    <!-- end of output -->

and what the commands print comes between the two comments. ``<!-- output, first 12 lines -->`` keeps so many lines of it,
``<!-- output, exit 3 -->`` expects another exit code than 0, and both may stand together. ``<!-- run -->`` runs the block above
it and shows nothing; ``<!-- run: COMMAND -->`` runs a command that the page does not show, such as one that fetches a file
from ``$CHECKOUT``. Blocks without such a comment are not run.

The commands of a page run one after another in an empty folder, on a terminal of 100 columns. What they write to stderr is
not part of the output. It needs the environment in which ``pytest bench/`` runs, and as long as the commands take.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100
END = "<!-- end of output -->"

_STEP = re.compile(
    r"^<!-- run: (?P<hidden>.+) -->\n"
    r"|^```console\n(?P<shown>(?:(?!```).*\n)+)```\n+<!-- (?P<mark>run|output)"
    r"(?:, first (?P<first>\d+) lines)?(?:, exit (?P<code>\d+))? -->\n",
    re.MULTILINE,
)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Commands to run. ``place`` is where their output stands in the page; None where it is not shown."""

    commands: str
    place: tuple[int, int] | None = None
    first: int | None = None
    code: int = 0


def pages() -> list[Path]:
    """The pages that people read: README.md and those of the site."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def steps(page: str) -> Iterator[Step]:
    """The steps of a page, in order. ValueError for an output that does not end."""
    for found in _STEP.finditer(page):
        if found["hidden"]:
            yield Step(commands=found["hidden"])
            continue
        place = None
        if found["mark"] == "output":
            end = page.find(END, found.end())
            if end < 0 or _STEP.search(page, found.end(), end):
                raise ValueError(f"no {END!r} follows {found[0].strip().splitlines()[-1]!r}")
            place = (found.end(), end)
        first = int(found["first"]) if found["first"] else None
        yield Step(commands=found["shown"], place=place, first=first, code=int(found["code"] or 0))


def rewritten(page: str, folder: Path) -> str:
    """The page with the output of its commands, run in ``folder``. RuntimeError for one that ends unexpectedly."""
    parts, written = [], 0
    for step in steps(page):
        said = run(step, folder)
        if step.place:
            start, end = step.place
            parts += [page[written:start], _block(said, step.first)]
            written = end
    return "".join([*parts, page[written:]])


def run(step: Step, folder: Path) -> str:
    """What the commands of a step print to a terminal, without colours and the folder's own path."""
    print(f"$ {step.commands.strip()}", file=sys.stderr)
    started = time.monotonic()
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "CHECKOUT": str(ROOT),
        "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": str(WIDTH), "LINES": "50",
    }  # fmt: skip
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDTH, 0, 0))
    with subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", step.commands], cwd=folder, env=environment, stdout=theirs, stdin=subprocess.DEVNULL
    ) as process:
        os.close(theirs)
        said = b"".join(_read(ours))
    os.close(ours)
    if process.returncode != step.code:
        raise RuntimeError(f"exit code {process.returncode}, not {step.code}, of: {step.commands.strip()}")
    print(f"  {time.monotonic() - started:.1f} s", file=sys.stderr)
    return _CONTROL.sub("", said.decode(errors="replace")).replace(f"{folder}/", "")


def _read(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # how a terminal ends, once nobody has its other side open
            return
        if not piece:
            return
        yield piece


def _block(said: str, first: int | None) -> str:
    lines = [line.rstrip() for line in said.strip("\n").splitlines()]
    shown = lines if first is None or len(lines) <= first else [*lines[:first], "..."]
    return "\n".join(["", "```text", *shown, "```", "", ""])


def main(arguments: Sequence[str]) -> int:
    """Rewrite the named pages, or all that show output."""
    for page in [Path(each).resolve() for each in arguments] or pages():
        text = page.read_text(encoding="utf-8")
        if not any(step.place for step in steps(text)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            page.write_text(rewritten(text, Path(folder)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
