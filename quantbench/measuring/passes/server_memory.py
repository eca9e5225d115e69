"""Memory of a server that was started here: of all its processes together, while it answers and nothing is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

import psutil

from quantbench.core.boards import Boards, open_boards
from quantbench.core.descendants import below
from quantbench.core.trace import ServerMemory

_SAMPLE_S = 0.1
"""Reading a process's PSS walks all its pages, which holds it up: so not as often as the worker's own memory is read."""

_UNSEEN = "the server's processes could not be looked at while it answered"


class ServerWatch:
    """The highest samples so far, and why there is none."""

    def __init__(self, pid: int, device: str) -> None:
        """``pid`` is the supervisor's; ``device`` is where the server was told to run."""
        self._pid = pid
        self._boards = open_boards(device)
        self._highest: dict[str, int] = {}
        self._absent = {"pss_bytes": _UNSEEN, "device_bytes": _UNSEEN}

    def look(self) -> None:
        """Take a sample."""
        processes = below(self._pid)
        self._note("pss_bytes", lambda: _pss(processes))
        boards = self._boards
        if isinstance(boards, str):
            self._absent["device_bytes"] = boards
        else:
            self._note("device_bytes", lambda: _on_boards(boards, {each.pid for each in processes}))

    def found(self) -> ServerMemory:
        """The peaks."""
        return ServerMemory(
            pss_bytes=self._highest.get("pss_bytes"), device_bytes=self._highest.get("device_bytes"), absent=self._absent
        )

    def _note(self, name: str, ask: Callable[[], int]) -> None:
        try:
            self._highest[name] = max(self._highest.get(name, 0), ask())
        except OSError as error:
            self._absent[name] = str(error)
        else:
            self._absent.pop(name, None)


@contextmanager
def watched(pid: int, device: str) -> Iterator[ServerWatch]:
    """Sample the memory of what runs below the process ``pid`` until the end of the block."""
    watch = ServerWatch(pid, device)
    ended = Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_S):
            watch.look()

    thread = Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()
        watch.look()


def _pss(processes: list[psutil.Process]) -> int:
    """Resident bytes of all processes, of pages that several of them share each its part. OSError where it is not told."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            try:
                total += process.memory_full_info().pss
            except (psutil.AccessDenied, AttributeError) as error:
                raise OSError(
                    "the memory of a server's processes is read as PSS from /proc/PID/smaps_rollup, which this system does not "
                    f"give ({type(error).__name__}); measure on Linux, as the user whose server it is"
                ) from error
    if not total:
        raise OSError(_UNSEEN)
    return total


def _on_boards(boards: Boards, pids: set[int]) -> int:
    listed = boards.process_bytes(pids)
    if listed is None:
        raise OSError("the driver lists no memory for the server: in a container it may know its processes by other numbers")
    return listed
