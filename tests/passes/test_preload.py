"""What the fork server imports: with GPUs hidden, and what is asked of a forked child."""

from __future__ import annotations

import os
import sys
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from quantbench.measuring import preload

if TYPE_CHECKING:
    from pathlib import Path

CURIOUS = """
import os
seen = os.environ.get("CUDA_VISIBLE_DEVICES")
from torch.utils._triton import has_triton
has_triton()
"""


@pytest.mark.parametrize("users", [None, "1", "MIG-a"])
def test_imports_see_no_gpu_and_nothing_is_remembered_of_that(
    users: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchao asks torch when transformers is imported."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if users is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", users)
    triton = ModuleType("torch.utils._triton")
    triton.has_triton = cache(lambda: os.environ.get("CUDA_VISIBLE_DEVICES") != "")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils._triton", triton)
    (tmp_path / "curious.py").write_text(CURIOUS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "curious", raising=False)

    assert set(preload.import_shared(["curious", "not_installed_at_all"])) == {"curious"}

    assert sys.modules.pop("curious").seen == ""
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == users
    assert triton.has_triton() is True  # asked again


def test_gpus_are_shown_again_after_an_import_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    (tmp_path / "broken_library.py").write_text("raise ImportError('no libfoo')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="no libfoo"):
        preload.import_shared(["broken_library"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize("bad", [True, False])
def test_a_forked_child_says_whether_it_may_use_gpus(bad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent itself looks well in either case."""
    parent = os.getpid()
    cuda = SimpleNamespace(is_initialized=lambda: False, _is_in_bad_fork=lambda: bad and os.getpid() != parent)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))  # type: ignore[arg-type]
    assert preload.forks_may_use_gpus() is not bad


def test_without_torch_nothing_stands_against_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert preload.forks_may_use_gpus()
