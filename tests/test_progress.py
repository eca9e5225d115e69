"""Progress of long runs: what is known is said, and what pytest writes stays as it is."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from quantbench.core.job import enter_stage
from quantbench.core.record import Record, Status
from quantbench.core.scenario import Scenario, Variant
from quantbench.running import progress
from quantbench.running.display import QUIET_S, LiveLine, PlainLines, Screen, open_display
from quantbench.running.progress import Moment, Progress, duration

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCENARIO = Scenario(model="some/canary", variant=Variant(method="gguf", precision="q8_0"), prompts="ten")
MOMENT = Moment(number=2, total=5, variant="canary gguf/q8_0", stage="latency", elapsed_s=41.0, left_s=None)


class Kept:
    """A display that remembers."""

    def __init__(self) -> None:
        self.shown: list[Moment] = []
        self.over: list[Moment] = []
        self.cleared = 0

    def show(self, moment: Moment) -> None:
        self.shown.append(moment)

    def done(self, moment: Moment) -> None:
        self.over.append(moment)

    def clear(self) -> None:
        self.cleared += 1

    def close(self) -> None:
        """Nothing to close."""


class Clock:
    """Seconds, as told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def record(status: Status) -> Record:
    return Record(scenario=SCENARIO, scenario_key="", status=status)


BELOW = r"(?:\x1bD){2}\x1b\[2A\x1b7\r\x1b\[B"
"""Room for two lines, the cursor kept, and down."""
REDRAWN, BACK = r"\r\x1b\[2K", "\x1b8"


def plain(text: str) -> list[str]:
    """What was drawn on a terminal, one after the other, without colours and commands."""
    return [re.sub(r"\x1b(?:\[[0-9;?]*[A-Za-z]|.)", "", line).strip() for line in re.split(REDRAWN, re.sub(BELOW, "", text))]


class TestHowARunStands:
    def test_time_left_is_unknown_at_first_and_then_follows_from_the_jobs_that_are_done(self, tmp_path: Path) -> None:
        kept, clock = Kept(), Clock()
        run = Progress(kept, jobs=4, polls=False, clock=clock)
        with run.job([SCENARIO]):
            run.working("measure", tmp_path)
            clock.now += 10
        with run.job([SCENARIO]):
            clock.now += 4
            run.working("measure", tmp_path)
            clock.now += 16
        with run.job([SCENARIO]):
            pass
        assert [(each.number, each.total, each.left_s) for each in kept.shown] == [
            (1, 4, None),
            (1, 4, None),
            (2, 4, 10 * 3),
            (2, 4, 10 * 3 - 4),
            (3, 4, 15 * 2),
        ]
        assert [each.left_s for each in kept.over] == [30, 30, 15]
        assert kept.shown[3].elapsed_s == 4
        assert [each.left for each in kept.shown[1:3]] == ["- left", "about 30 s left"]

    def test_what_fails_at_once_says_nothing_of_the_time_left(self, tmp_path: Path) -> None:
        kept, clock = Kept(), Clock()
        run = Progress(kept, jobs=9, polls=False, clock=clock)
        with run.job([SCENARIO]):
            run.working("prepare", tmp_path)
        assert [each.left for each in (*kept.shown, *kept.over)] == ["- left"] * 3

    def test_a_job_that_takes_longer_than_the_others_is_not_counted_as_less_than_nothing(self, tmp_path: Path) -> None:
        kept, clock = Kept(), Clock()
        run = Progress(kept, jobs=2, polls=False, clock=clock)
        with run.job([SCENARIO]):
            run.working("measure", tmp_path)
            clock.now += 1
        with run.job([SCENARIO]):
            clock.now += 50
            run.working("probe", tmp_path)
        assert kept.shown[-1].left_s == 0

    def test_more_jobs_than_foreseen_are_counted(self) -> None:
        kept = Kept()
        run = Progress(kept, jobs=1, polls=False)
        for _ in range(3):
            with run.job([SCENARIO]):
                pass
        assert [(each.number, each.total) for each in kept.over] == [(1, 1), (2, 2), (3, 3)]

    @pytest.mark.parametrize(
        ("scenario", "name"),
        [
            (SCENARIO, "some/canary gguf/q8_0"),
            (replace(SCENARIO, repeat=1, model="/a/long/path/my.gguf"), "my gguf/q8_0 #2"),
            (replace(SCENARIO, variant=Variant(method="m", precision="fp32", control=True)), "some/canary m/fp32 (control)"),
        ],
    )
    def test_a_variant_has_its_name(self, scenario: Scenario, name: str) -> None:
        kept = Kept()
        with Progress(kept, polls=False).job([scenario]):
            assert kept.shown[0].variant == name

    @pytest.mark.parametrize(
        ("statuses", "ending"),
        [
            ([Status.OK, Status.OK], "ok"), ([Status.OK, Status.OOM, Status.OK], "2 ok, 1 oom"), ([Status.TIMEOUT], "timeout"),
            ([], "nothing stored"),
        ],
    )  # fmt: skip
    def test_a_finished_variant_says_how_it_ended(self, statuses: list[Status], ending: str) -> None:
        kept = Kept()
        run = Progress(kept, polls=False)
        with run.job([SCENARIO]):
            for status in statuses:
                run.ended(record(status))
        assert [each.stage for each in kept.over] == [ending]

    def test_stages_come_from_the_runner_and_of_a_measurement_from_its_worker(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(progress, "LOOK_S", 0.005)
        kept = Kept()

        def wait_for(stage: str) -> None:
            ends = time.monotonic() + 20
            while kept.shown[-1].stage != stage:
                assert time.monotonic() < ends, f"{stage} was never shown"
                time.sleep(0.002)

        run = Progress(kept)
        with run.job([SCENARIO]):
            enter_stage(tmp_path, "not looked at")
            run.working("reference", tmp_path)
            wait_for("making the reference")
            run.working("probe", tmp_path)
            wait_for("probing")
            (tmp_path / "stage").unlink()
            run.working("measure", tmp_path)
            wait_for("starting")
            for stage in ("loading", "memory", "similarity", "latency"):
                enter_stage(tmp_path, stage)
                wait_for(stage)

    def test_nothing_runs_beside_a_job_in_this_process(self, tmp_path: Path) -> None:
        before = threading.active_count()
        kept = Kept()
        run = Progress(kept, polls=False)
        with run.job([SCENARIO]):
            run.working("measure", tmp_path)
            assert threading.active_count() == before
        assert [each.stage for each in kept.shown] == ["starting", "starting"]

    def test_nothing_runs_where_nothing_is_shown(self) -> None:
        before = threading.active_count()
        with Progress().job([SCENARIO]):
            assert threading.active_count() == before

    def test_an_interrupted_job_makes_room_and_is_not_said_to_be_done(self) -> None:
        kept = Kept()
        with pytest.raises(KeyboardInterrupt), Progress(kept).job([SCENARIO]):
            raise KeyboardInterrupt
        assert kept.cleared == 1
        assert kept.over == []

    @pytest.mark.parametrize(
        ("seconds", "words"),
        [(0.2, "0 s"), (89.4, "89 s"), (90, "2 min"), (600, "10 min"), (5399, "1 h 30 min"), (7500, "2 h 05 min")],
    )
    def test_durations_are_as_people_say_them(self, seconds: float, words: str) -> None:
        assert duration(seconds) == words


class TestPlainLines:
    @staticmethod
    def lines(shared: bool = False) -> tuple[PlainLines, Callable[[], str]]:
        stream = io.StringIO()
        return PlainLines(Screen(stream), shared=shared), stream.getvalue

    def test_a_line_for_each_variant_that_is_done(self) -> None:
        display, text = self.lines()
        display.show(replace(MOMENT, elapsed_s=0.0))
        display.done(replace(MOMENT, stage="ok", left_s=120.0))
        display.done(replace(MOMENT, number=5, stage="2 ok, 1 oom", left_s=0.0))
        assert text() == (
            "quantbench: 2 of 5, canary gguf/q8_0: ok after 41 s, about 2 min left\n"
            "quantbench: 5 of 5, canary gguf/q8_0: 2 ok, 1 oom after 41 s\n"
        )

    def test_a_stage_is_told_now_and_then_and_not_twice(self) -> None:
        display, text = self.lines()
        for second in range(int(QUIET_S * 4)):
            stage = "probing" if second < QUIET_S * 1.5 else "loading" if second < QUIET_S * 1.8 else "latency"
            display.show(replace(MOMENT, stage=stage, elapsed_s=float(second)))
        assert [line.split(": ")[-1] for line in text().splitlines()] == ["probing, - left", "latency, - left"]

    def test_variants_that_are_quick_have_no_stages(self) -> None:
        display, text = self.lines()
        for number in range(1, 5):
            display.show(replace(MOMENT, number=number, elapsed_s=QUIET_S - 1))
        assert text() == ""

    def test_where_pytest_writes_too_a_line_begins_on_a_line_of_its_own(self) -> None:
        display, text = self.lines(shared=True)
        display.show(replace(MOMENT, elapsed_s=QUIET_S))
        display.done(MOMENT)
        display.show(replace(MOMENT, number=3, elapsed_s=0.0))
        display.done(replace(MOMENT, number=3))
        assert [bool(line) for line in text().split("\n")] == [False, True, True, False, True, False]

    def test_a_hostile_name_commands_nothing(self) -> None:
        display, text = self.lines()
        display.done(replace(MOMENT, variant="\x1b[2J\x1b]0;x\x07\r\nx"))
        assert text().count("\n") == 1
        assert "\x1b" not in text()


class TestLiveLine:
    @staticmethod
    def drawn(columns: int, *moments: Moment) -> tuple[LiveLine, io.StringIO]:
        class Terminal(Screen):
            columns = 0

        stream = io.StringIO()
        screen = Terminal(stream)
        screen.columns = columns
        display = LiveLine(screen)
        for moment in moments:
            display.show(moment)
        return display, stream

    def test_everything_is_said(self) -> None:
        _, stream = self.drawn(120, MOMENT)
        assert plain(stream.getvalue())[-1].endswith("2/5 canary gguf/q8_0 latency 41 s, - left")

    @pytest.mark.parametrize("columns", [20, 79, 200])
    def test_it_stays_one_line_however_wide_the_terminal_is(self, columns: int) -> None:
        _, stream = self.drawn(columns, *(replace(MOMENT, elapsed_s=float(second)) for second in range(3)))
        assert stream.getvalue().count("\n") == 0
        lines = plain(stream.getvalue())
        assert len(lines) == 3
        assert all("2/5" in line and len(line) < columns for line in lines)

    def test_it_lies_below_what_pytest_writes_and_leaves_no_trace(self) -> None:
        display, stream = self.drawn(120, MOMENT, MOMENT)
        text = stream.getvalue()
        assert re.fullmatch(BELOW + r"[^\r\n]*" + REDRAWN + r"[^\r\n]*", text)
        display.clear()
        assert re.search(r"\n[^\r\n]*\r\x1b\[1A\x1b\[2K" + BACK + "$", stream.getvalue())
        display.clear()
        assert stream.getvalue().count("\x1b8") == 1
        display.show(MOMENT)
        display.close()
        assert stream.getvalue().count("\x1b7") == stream.getvalue().count("\x1b8") == 2

    def test_markup_and_escapes_in_names_are_text(self) -> None:
        _, stream = self.drawn(120, replace(MOMENT, variant="[bold]x[/] :bug: {task}\x1b[2J\n"))
        assert "[bold]x[/] :bug: {task} [2J latency" in plain(stream.getvalue())[-1]


class TestWhereItIsShown:
    def test_in_a_log_there_are_plain_lines_and_none_when_quiet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        streams = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        display = open_display(quiet=False)
        assert isinstance(display, PlainLines)
        display.done(MOMENT)
        assert streams[0].getvalue() == ""
        assert streams[1].getvalue().startswith("quantbench: 2 of 5")
        assert open_display(quiet=True) is None

    @pytest.mark.parametrize(("term", "kind"), [("xterm", LiveLine), ("dumb", PlainLines), ("", PlainLines)])
    @pytest.mark.parametrize("name", ["stdout", "stderr"])
    def test_on_a_terminal_there_is_a_line(self, name: str, term: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
        own, other = pty.openpty()
        monkeypatch.setenv("TERM", term or "dumb")
        for stream in ("stdout", "stderr"):
            monkeypatch.setattr(sys, stream, io.StringIO())
        with os.fdopen(own, "rb"), os.fdopen(other, "w") as terminal:
            monkeypatch.setattr(sys, name, terminal)
            display = open_display(quiet=False)
            assert type(display) is kind
            display.close()

    def test_a_reader_that_went_away_costs_nothing(self) -> None:
        read, write = os.pipe()
        with os.fdopen(write, "w") as stream:
            screen = Screen(stream)
            os.close(read)
            screen.write("nobody hears this")
            screen.close()


@pytest.fixture(scope="module")
def seen(stub_path: Path, stub_cache: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a terminal gets from a run with one variant that is stuck for a while."""
    folder = tmp_path_factory.mktemp("terminal")
    (folder / "test_load.py").write_text("from quantbench.suite.test_load import test_load\n")
    (folder / "matrix.toml").write_text(
        'control = false\nprompts = ["two"]\n[methods]\nstub = ["exact", "stuck", "noisy"]\n'
        '[conditions]\nreference = "stub/exact"\noutput_tokens = 4\nanswer_tokens = 4\ncontinuation_tokens = 8\n'
    )
    command = [
        sys.executable, "-m", "pytest", "--quantbench-matrix=matrix.toml", "--quantbench-profile=quick", "-v", "--no-header",
        "--quantbench-no-probes", "--quantbench-timeout=4", "-p", "no:cacheprovider", "--benchmark-disable",
    ]  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTEST_ADDOPTS", "NO_COLOR", "CI")}
    kept |= {"STUB_UNWATCHED": "1", "STUB_WITHOUT_TORCH": "1"}
    own, other = pty.openpty()
    process = subprocess.Popen(
        command, cwd=folder, stdin=other, stdout=other, stderr=other, close_fds=True,
        env={**kept, "PYTHONPATH": str(stub_path), "QUANTBENCH_CACHE": str(stub_cache(folder)), "TERM": "xterm"},
    )  # fmt: skip
    os.close(other)
    chunks: list[bytes] = []
    try:
        while chunk := os.read(own, 1 << 16):
            chunks.append(chunk)
    except OSError:  # the other end was closed: that is how a terminal ends
        pass
    finally:
        os.close(own)
        process.wait(timeout=60)
    return b"".join(chunks)


class TestOnARealTerminal:
    def test_the_variant_its_stage_and_the_time_left_are_shown(self, seen: bytes) -> None:
        text = "\n".join(plain(seen.decode()))
        assert re.search(r"1/3 canary stub/exact +starting +0 s, about \d+ s left", text)
        assert re.search(r"2/3 canary stub/stuck +loading +\d s, about \d+ s left", text)

    def test_besides_the_line_there_is_what_pytest_wrote_and_nothing_else(self, seen: bytes) -> None:
        text = seen.decode()
        drawn = re.findall(BELOW + r"[\s\S]*?" + BACK, text)
        assert len(drawn) == 3
        assert all(each.count("\n") == 1 and each.endswith(f"\r\x1b[1A\x1b[2K{BACK}") for each in drawn)
        lines = re.sub(BELOW + r"[\s\S]*?" + BACK, "", text).splitlines()
        tests = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines if line.startswith("test_load.py::")]
        assert {line.split()[1] for line in tests} == {"PASSED", "FAILED"}
        assert [line.split()[-1] for line in tests] == ["33%]", "66%]", "[100%]"]
        assert not [line for line in lines if "━" in line or re.search(r"[-s] left", line)]
