"""Displays a run's progress: as a line below pytest's own on a terminal, as plain lines in a log."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import IO, TYPE_CHECKING, TextIO, cast

from quantbench.core.text import one_line
from quantbench.running.progress import Display, Moment, duration

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

QUIET_S = 30.0
"""The least time between two plain lines about one variant."""

_BELOW = "\x1bD\x1bD\x1b[2A\x1b7\r\x1b[B"
"""Make room for two lines (rich ends its own with a line break), save the cursor's position, and go to the line below."""

_BACK = "\x1b8"
"""Back to the saved position."""


class Screen:
    """A separate handle on a stream, which keeps working while pytest captures the stream. Never fails."""

    def __init__(self, stream: TextIO) -> None:
        """Create it while nothing is captured."""
        self._stream = stream
        try:
            self._handle: int | None = os.dup(stream.fileno())
        except (OSError, ValueError):  # a stream in memory has none
            self._handle = None

    @property
    def columns(self) -> int:
        """The width of the terminal; 80 where there is none."""
        try:
            return os.get_terminal_size(self._handle or 0).columns or 80
        except OSError:
            return 80

    def write(self, text: str) -> None:
        """Write at once."""
        with contextlib.suppress(OSError, ValueError):
            if self._handle is None:
                self._stream.write(text)
            else:
                os.write(self._handle, text.encode(errors="replace"))

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Give the handle back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class LiveLine:
    """One line below the one that pytest is writing. Afterwards the cursor is where pytest left it, and the line is gone."""

    def __init__(self, screen: Screen) -> None:
        """``screen`` must be a terminal."""
        self._screen = screen
        self._live: Live | None = None

    def show(self, moment: Moment) -> None:
        """See Display."""
        self._live = self._live or self._begun()
        self._live.console.width = max(1, self._screen.columns - 1)  # on every update, since windows are resized
        self._live.update(_rendered(moment), refresh=True)

    def done(self, moment: Moment) -> None:
        """Pytest itself shows how a test ended."""

    def clear(self) -> None:
        """See Display."""
        if self._live:
            self._live.stop()
            self._live = None
            self._screen.write(_BACK)

    def close(self) -> None:
        """See Display."""
        self.clear()
        self._screen.close()

    def _begun(self) -> Live:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=cast("IO[str]", self._screen), force_terminal=True, legacy_windows=False)
        live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._screen.write(_BELOW)
        live.start()
        return live


def _rendered(moment: Moment) -> RenderableType:
    """The line with its colours; what does not fit is cut off."""
    from rich.progress_bar import ProgressBar
    from rich.table import Column, Table
    from rich.text import Text

    parts = {
        "bold": f"{moment.number}/{moment.total}",
        "cyan": moment.variant,
        "magenta": moment.stage,
        "dim": f"{duration(moment.elapsed_s)}, {moment.left}",
    }
    line = Table.grid("", Column(no_wrap=True), padding=(0, 1))
    text = Text(" ").join(Text(one_line(part), style) for style, part in parts.items())
    line.add_row(ProgressBar(total=moment.total, completed=moment.number - 1, width=12), text)
    return line


class PlainLines:
    """For logs: a line when a variant is done, and an occasional one about the stage of a variant that takes long."""

    def __init__(self, screen: Screen, *, shared: bool) -> None:
        """``shared``: pytest writes to the same stream, so it may be in the middle of a line."""
        self._screen = screen
        self._shared = shared
        self._about = (0, "")
        self._quiet_until = QUIET_S

    def show(self, moment: Moment) -> None:
        """See Display."""
        if moment.number != self._about[0]:
            self._about, self._quiet_until = (moment.number, ""), QUIET_S
        if moment.elapsed_s >= self._quiet_until and moment.stage != self._about[1]:
            self._say(moment, f"{moment.stage}, {moment.left}")
            self._quiet_until = moment.elapsed_s + QUIET_S

    def done(self, moment: Moment) -> None:
        """See Display."""
        left = f", {moment.left}" if moment.number < moment.total else ""
        self._say(moment, f"{moment.stage} after {duration(moment.elapsed_s)}{left}")

    def clear(self) -> None:
        """Lines stay."""

    def close(self) -> None:
        """See Display."""
        self._screen.close()

    def _say(self, moment: Moment, what: str) -> None:
        begun = self._shared and not self._about[1]  # the first line about this variant: the last text is pytest's
        line = one_line(f"quantbench: {moment.number} of {moment.total}, {moment.variant}: {what}")
        self._screen.write("\n" * begun + line + "\n")
        self._about = (moment.number, moment.stage)


def open_display(*, quiet: bool) -> Display | None:
    """A live line if stdout or stderr is a terminal; else plain lines, unless ``quiet``.

    Call it while nothing is captured.
    """
    if os.environ.get("TERM", "dumb") != "dumb":
        for stream in (sys.stdout, sys.stderr):
            if stream.isatty():
                return LiveLine(Screen(stream))
    return None if quiet else PlainLines(Screen(sys.stderr), shared=_same(sys.stdout, sys.stderr))


def _same(one: TextIO, other: TextIO) -> bool:
    try:
        return os.path.sameopenfile(one.fileno(), other.fileno())
    except (OSError, ValueError):
        return False
