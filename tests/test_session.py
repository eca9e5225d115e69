"""A device that is not to be had is refused before anything is measured, made or fetched."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from quantbench.core import gpus, machine
from quantbench.core.cache import cache_root
from quantbench.core.errors import UsageError
from quantbench.core.gpus import Gpu
from quantbench.planning.options import RunOptions
from quantbench.running.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import FakeNvml

NO_GPU = r"^device 'cuda' was requested, but NVML lists no GPU; use cpu, or run on a machine with a GPU$"
CPU_BUILD = r"^device 'cuda' was requested, but torch 2\.13\.0\+cpu is a CPU build; install a CUDA build of torch, or use cpu$"


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Session]:
    """A session in an empty folder with these options."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "")
    monkeypatch.delenv("CUDA_DEVICE_ORDER")  # and so it is again afterwards, whatever a session sets

    def made(**given: str) -> Session:
        options = RunOptions.read(lambda option: given.get(option.key, option.default))
        return Session(options, command="", root=tmp_path)

    return made


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, beside a torch that cannot use it."""
    found = Gpu(name="A10", uuid="GPU-1", memory_bytes=24 * 2**30, driver="580")
    monkeypatch.setattr(gpus, "visible_gpus", lambda: (found,))
    monkeypatch.setattr(machine, "cpu_torch", lambda: "2.13.0+cpu")


@pytest.fixture
def no_gpu(nvml: FakeNvml) -> None:
    """No GPU."""
    nvml.boards.clear()


def test_an_engine_that_does_not_exist_is_refused(session: Callable[..., Session]) -> None:
    with pytest.raises(UsageError, match=r"^unknown engine 'proces'; did you mean 'process'\?$"):
        session(engine="proces")


def _refused(session: Session, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        session.start(list(session.planned), verbosity=None)
    assert not any(path.exists() for path in (Path("results"), cache_root()))
    assert "CUDA_DEVICE_ORDER" not in os.environ


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_asking_for_one_ends_at_once(session: Callable[..., Session]) -> None:
    _refused(session(device="cuda", model="dummy:llama-2-7b"), NO_GPU)


@pytest.mark.usefixtures("no_gpu")
def test_a_matrix_file_asks_as_an_option_does(session: Callable[..., Session], tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text('[methods]\ntorch = ["bf16"]\n[conditions]\ndevice = "cuda"\n')
    _refused(session(matrix="m.toml"), NO_GPU)


@pytest.mark.usefixtures("no_gpu")
def test_every_scenario_is_looked_at(session: Callable[..., Session]) -> None:
    mixed = session(method="torch")
    last = list(mixed.planned)[-1]
    conditions = replace(mixed.planned[last].conditions, device="cuda")
    mixed.planned[last] = replace(mixed.planned[last], conditions=conditions)
    _refused(mixed, NO_GPU)


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("asked", [{"method": "torch"}, {"method": "gguf"}, {}], ids=["torch", "its reference is", "all"])
def test_a_torch_without_cuda_ends_at_once_where_torch_has_to_run(
    asked: dict[str, str], session: Callable[..., Session]
) -> None:
    _refused(session(device="cuda", **asked), CPU_BUILD)


@pytest.mark.usefixtures("one_gpu")
def test_a_runtime_that_does_without_torch_goes_on_and_gpus_are_counted_as_nvidia_smi_does(
    session: Callable[..., Session],
) -> None:
    without = session(device="cuda", method="gguf", precision="q4_k_m", reference="gguf/f16")
    without.start(list(without.planned), verbosity=None)
    without.finish(interrupted=True)
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert without.run_id


def test_the_command_ends_with_the_code_of_a_usage_error(tmp_path: Path) -> None:
    """Whatever GPUs there are: so many nobody has."""
    start = "from quantbench.cli import main; main()"
    command = [sys.executable, "-c", start, "run", "--device", "cuda:99", "--method", "torch"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    said = done.stdout + done.stderr
    assert said.count("device 'cuda:99' was requested, but ") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "results").exists()
