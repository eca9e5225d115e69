"""SIGTERM and SIGHUP are like Ctrl-C, for commands, runs under pytest and scripts, and only where nobody else minds them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

from quantbench.cli.guard import guarded
from quantbench.core import ending
from quantbench.core.ending import like_ctrl_c

if TYPE_CHECKING:
    from collections.abc import Iterator

BOTH = (signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _usual() -> Iterator[None]:
    """As a program finds it when it starts, whoever runs these tests."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in BOTH}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BOTH)
def test_the_first_signal_interrupts_and_what_cleans_up_is_left_in_peace(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    with like_ctrl_c():
        with pytest.raises(KeyboardInterrupt, match=number.name):
            signal.raise_signal(number)
        signal.raise_signal(number)  # as a service manager sends it twice
        monkeypatch.setattr(ending, "_AGAIN_S", 0.0)
        with pytest.raises(KeyboardInterrupt):  # somebody swallowed the first one, and it is sent again
            signal.raise_signal(number)
    assert signal.getsignal(number) is signal.SIG_DFL


def test_what_is_ignored_or_handled_is_left_alone() -> None:
    seen: list[int] = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    with like_ctrl_c():
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
    assert seen == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_thread_changes_nothing() -> None:
    handlers = []

    def look() -> None:
        with like_ctrl_c():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]


def test_a_command_that_is_terminated_ends_like_an_interrupted_one() -> None:
    app = typer.Typer()
    app.command()(guarded(lambda: signal.raise_signal(signal.SIGTERM)))
    result = CliRunner().invoke(app, [])
    assert (result.exit_code, result.stderr) == (130, "quantbench: interrupted\n")


def test_a_child_that_a_command_waits_for_ends_with_it() -> None:
    """And so does the folder between them."""
    code = (
        "import signal, threading\n"
        "from quantbench.core.children import run\n"
        "from quantbench.core.ending import like_ctrl_c\n"
        "from quantbench.core.scratch import scratch_folder\n"
        "with like_ctrl_c(), scratch_folder() as folder:\n"
        "    print(folder, flush=True)\n"
        "    run(['sh', '-c', 'echo $$ > $0/pid; exec sleep 60', str(folder)], 'the work', timeout_s=60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        folder = process.stdout.readline().strip()
        process.terminate()
        assert process.wait(30) != 0
    assert not os.path.exists(folder)  # noqa: PTH110 - it was read as text
