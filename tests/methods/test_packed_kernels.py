"""Which kernels gptqmodel is left to choose from on a GPU; what the choice comes to needs one."""

from __future__ import annotations

import sys
from collections import OrderedDict
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.scenario import Conditions, Spec, Variant
from quantbench.methods import Settings
from quantbench.models.checkpoint import resolve
from quantbench.runtimes.gptqmodel import kernels as packed_kernels
from quantbench.runtimes.gptqmodel import quantize
from quantbench.runtimes.gptqmodel.kernels import compile_kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    Compiler = Callable[[str], bool]

GPTQ = ["gptq_swordfish", "gptq_machete", "gptq_marlin", "gptq_exllama_v2", "gptq_triton", "gptq_torch"]
AWQ = ["awq_swordfish", "awq_machete", "awq_marlin", "awq_gemm", "awq_torch"]
Backend = Enum("Backend", [(name.upper(), name) for name in (*GPTQ, *AWQ)], type=str)  # type: ignore[misc]


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Compiler], list[str]]:
    """What a stand-in for gptqmodel has left of a method's kernels, given what compiles."""

    def choose(method: str, compiles: Compiler) -> list[str]:
        offered = {
            "gptq": {"gptq": OrderedDict.fromkeys(map(Backend, GPTQ)), "gptq_v2": OrderedDict.fromkeys(map(Backend, GPTQ[2:]))},
            "awq": {"gemm": OrderedDict.fromkeys(map(Backend, AWQ))},
        }
        importer = ModuleType("gptqmodel.utils.importer")
        importer.AUTO_BACKEND_KERNEL_MAPPING = offered  # type: ignore[attr-defined]
        library = ModuleType("gptqmodel")
        library.extension = SimpleNamespace(is_available=compiles)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "gptqmodel", library)
        monkeypatch.setitem(sys.modules, "gptqmodel.utils", ModuleType("gptqmodel.utils"))
        monkeypatch.setitem(sys.modules, "gptqmodel.utils.importer", importer)
        compile_kernels.cache_clear()
        compile_kernels(method)
        compile_kernels.cache_clear()
        first, *others = ([backend.value for backend in kernels] for kernels in offered[method].values())
        assert all(each == [name for name in first if name in GPTQ[2:]] for each in others)
        return first

    monkeypatch.delenv("GPTQMODEL_CUTLASS_DIR", raising=False)
    return choose


def _fails(_: str) -> bool:
    raise OSError("no route to host")


@pytest.mark.parametrize("compiles", [lambda _: False, _fails], ids=["no compiler", "an error"])
def test_what_cannot_be_compiled_is_not_chosen(compiles: Compiler, left: Callable[..., list[str]]) -> None:
    assert left("gptq", compiles) == ["gptq_exllama_v2", "gptq_triton", "gptq_torch"]
    assert left("awq", compiles) == ["awq_gemm", "awq_torch"]


def test_marlin_is_compiled_and_cutlass_is_not_fetched(left: Callable[..., list[str]]) -> None:
    asked: list[str] = []
    assert left("gptq", lambda code: not asked.append(code)) == GPTQ[2:]  # type: ignore[func-returns-value]
    assert left("awq", lambda code: not asked.append(code)) == AWQ[2:]  # type: ignore[func-returns-value]
    assert asked == ["marlin_fp16", "marlin_fp16"]


def test_with_the_sources_of_cutlass_its_kernels_are_compiled_too(
    left: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTQMODEL_CUTLASS_DIR", "/somewhere")
    assert left("gptq", lambda code: code != "swordfish") == GPTQ[1:]


def test_the_names_are_gptqmodels_own() -> None:
    from gptqmodel import extension
    from gptqmodel.utils.backend import BACKEND

    for name, code in {**packed_kernels.COMPILED, **packed_kernels.OF_CUTLASS}.items():
        assert BACKEND(name).value == name
        assert code in extension.available_extensions()


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_they_are_compiled_on_a_gpu_before_the_checkpoint_is_wanted(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def stop(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(quantize, "compile_kernels", calls.append)
    monkeypatch.setattr(quantize, "grouping", stop)
    settings = Settings(checkpoint=resolve("canary"), threads=1, context=64)
    for device in ("cpu", "cuda", "cuda:1"):
        variant = Variant(method=method, precision="int4-g128")
        spec = Spec(model="canary", variant=variant, conditions=Conditions(device=device))
        with pytest.raises(InterruptedError):
            quantize.prepared(spec, settings)
    assert calls == [method, method]
