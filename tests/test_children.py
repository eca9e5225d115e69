"""Processes that answer one request: the answer, and what becomes of a refusal, a crash, a kill and a hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from quantbench.core import children
from quantbench.core.errors import ChildError, OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BARS = "quantizing: 0%| | 0/6\rquantizing: 17%|#6 | 1/6 \x1b[32mINFO\x1b[0m layer 0\r"
CHILD = """
import json, os, signal, sys
from quantbench.core.children import answer
from quantbench.core.errors import ModelError

def reply(request):
    {body}

if __name__ == "__main__":
    answer(reply)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A module on the import path that answers as its body says."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)

    def write(body: str) -> str:
        (folder / "a_child.py").write_text(CHILD.format(body=body))
        return "a_child"

    return write


def ended(module: str, **options: float) -> str:
    with pytest.raises(ChildError) as caught:
        children.call(module, None, "the work", **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_an_answer_comes_from_a_module_and_never_from_the_current_folder(
    child: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, with what is added to the environment, without a word to the terminal, and in the folder that is asked for."""
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    names = ("HF_HUB_OFFLINE", "ADDED")
    module = child(f"print('noise'); return [request, os.getcwd(), *(os.environ[name] for name in {names})]")
    assert children.call(module, {"a": [1, None]}, "the work", env={"ADDED": "yes"}, cwd=tmp_path) == [
        {"a": [1, None]}, str(tmp_path), "1", "yes",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("print('ValueError: a warning', file=sys.stderr); raise ModelError('no such\\nmodel')", "no such model"),
        ("raise KeyError('n_ctx')", "the work ended with exit code 1 (KeyError: 'n_ctx')"),
        ("sys.exit(3)", "the work ended with exit code 3"),
        ("os.kill(os.getpid(), signal.SIGABRT)", "the work ended with SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 2)", f"the work ended with signal {signal.SIGRTMIN + 2}"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the work ended with SIGKILL"),
    ],
)
def test_what_ends_badly_is_one_sentence(body: str, sentence: str, child: Callable[[str], str]) -> None:
    assert ended(child(body)) == sentence


def test_what_the_kernel_killed_for_memory_ran_out_of_it(child: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill that the kernel did not count is somebody's."""
    kills = iter(range(2))
    monkeypatch.setattr(children, "oom_kills", lambda: next(kills))
    with pytest.raises(OutOfMemoryError, match=r"^the work ran out of memory; use a smaller model or precision$"):
        children.call(child("os.kill(os.getpid(), signal.SIGKILL)"), None, "the work")


@pytest.mark.parametrize("error", ["MemoryError", "numpy._core._ArrayMemoryError: no", "torch.OutOfMemoryError: no"])
def test_what_says_that_memory_ran_out_ran_out_of_it(error: str) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        children.run(["sh", "-c", f"echo '{error}' >&2; exit 1"], "the work")
    assert str(caught.value) == f"the work ran out of memory ({error}); use a smaller model or precision"


def test_what_takes_too_long_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = ["sh", "-c", f"sleep 60 & echo $! > {pids}; wait"]
    with pytest.raises(ChildError, match=r"^the work took more than 0\.5 s and was stopped$"):
        children.run(command, "the work", timeout_s=0.5)
    assert _is_gone(int(pids.read_text()))


def test_what_may_take_as_long_as_it_must_is_killed_with_its_parents_group() -> None:
    """As a worker is that had its time."""
    code = "from quantbench.core.children import run; run(['sh', '-c', 'echo $$ >&2; sleep 60'], 'the work')"
    code = code.replace(">&2", "> /proc/$PPID/fd/1")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        children.kill_group(parent.pid)
    assert _is_gone(pid)


def test_an_answer_that_nobody_waits_for_is_given_up(child: Callable[[str], str], tmp_path: Path) -> None:
    """It has a group of its own, and ends with its parent all the same."""
    told = tmp_path / "pid"
    module = child(f"import time; open({str(told)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    code = f"from quantbench.core.children import call; call({module!r}, None, 'the work', timeout_s=60)"
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        while not told.exists() or not told.read_text():
            time.sleep(0.01)
        parent.kill()
    assert _is_gone(int(told.read_text()))


def _is_gone(pid: int) -> bool:
    """Whether it ends soon; a process that nobody waits for stays as a zombie."""
    for _ in range(500):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


NO_MESSAGE = """Traceback (most recent call last):
  File "/somewhere/looper/awq_processor.py", line 1686, in _compute_best_clip
    assert org_w_shape[0] % oc_batch_size == 0
AssertionError
"""


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        (f"{BARS}\nTraceback (most recent call last):\nValueError: bits 5\n{BARS}", "ValueError: bits 5"),
        (f"{BARS}\ntorch.OutOfMemoryError: CUDA out of memory.\nINFO done\n", "torch.OutOfMemoryError: CUDA out of memory."),
        (BARS + "\n" + NO_MESSAGE + BARS, "AssertionError in awq_processor.py, line 1686"),
        ("Illegal instruction\n", "Illegal instruction"),
        ("/build/of/ggml/src/ggml.c:7: GGML_ASSERT(a) failed\n", "ggml.c:7: GGML_ASSERT(a) failed"),
        ("\n", ""),
    ],
)
def test_the_librarys_own_reason_is_found_among_its_progress_bars(stderr: str, said: str) -> None:
    assert children.last_words(stderr) == said
