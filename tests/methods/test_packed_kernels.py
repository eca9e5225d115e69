"""Which kernels gptqmodel is left to choose from on a GPU; what the choice comes to needs one."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from dataclasses import replace
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
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path


GPU, ANY, CPU = (["cuda"], ["all"], ["cpu"])
KERNELS: Mapping[str, tuple[Sequence[int], Sequence[bool], Sequence[str]]] = {
    "gptq_swordfish": ((4, 8), (True, False), GPU),
    "gptq_machete": ((4, 8), (True, False), GPU),
    "gptq_marlin": ((4, 8), (True,), GPU),
    "gptq_exllama_v2": ((4,), (True, False), GPU),
    "gptq_torch_fused": ((4,), (True, False), CPU),
    "gptq_triton": ((2, 4, 8), (True, False), GPU),
    "gptq_torch": ((2, 3, 4, 8), (True, False), ANY),
    "awq_swordfish": ((4,), (True, False), GPU),
    "awq_machete": ((4, 8), (True, False), GPU),
    "awq_marlin": ((4, 8), (True, False), GPU),
    "awq_exllama_v2": ((4,), (True, False), GPU),
    "awq_gemm": ((4,), (True, False), GPU),
    "awq_torch": ((2, 3, 4, 8), (True, False), ANY),
}
"""As gptqmodel 7.6 declares them, in its order: bits, symmetric or not, devices."""

Backend = Enum("Backend", [(name.upper(), name) for name in KERNELS], type=str)  # type: ignore[misc]
GPTQ = {"bits": 4, "group_size": 128, "sym": True, "desc_act": False, "checkpoint_format": "gptq"}
AWQ = {"bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


def _kernels(method: str) -> OrderedDict[Any, Any]:
    return OrderedDict(
        (
            Backend(name),
            SimpleNamespace(
                name=name, SUPPORTS_BITS=bits, SUPPORTS_SYM=sym, SUPPORTS_GROUP_SIZE=[-1, 32, 64, 128],
                SUPPORTS_DEVICES=[SimpleNamespace(value=device) for device in devices],
            ),
        )
        for name, (bits, sym, devices) in KERNELS.items()
        if name.startswith(f"{method}_")
    )  # fmt: skip


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What a stand-in for gptqmodel has left of a method's kernels, given what compiles and what it refuses besides."""
    offered = {"gptq": {"gptq": _kernels("gptq"), "gptq_v2": _kernels("gptq")}, "awq": {"gemm": _kernels("awq")}}

    def choose(method: str, compiles: Compiler, quantization: Mapping[str, Any], refused: str = "") -> list[str]:
        importer = ModuleType("gptqmodel.utils.importer")
        importer.AUTO_BACKEND_KERNEL_MAPPING = offered  # type: ignore[attr-defined]
        importer.validate_quant_linear = lambda kernel, **_: (kernel.name != refused, None)  # type: ignore[attr-defined]
        library = ModuleType("gptqmodel")
        library.extension = SimpleNamespace(is_available=compiles)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "gptqmodel", library)
        monkeypatch.setitem(sys.modules, "gptqmodel.utils", ModuleType("gptqmodel.utils"))
        monkeypatch.setitem(sys.modules, "gptqmodel.utils.importer", importer)
        packed_kernels.is_ready.cache_clear()
        compile_kernels(method, quantization)
        packed_kernels.is_ready.cache_clear()
        first, *others = ([backend.value for backend in kernels] for kernels in offered[method].values())
        assert all(len(each) == len(_kernels(method)) for each in others)  # another layout's are left alone
        return first

    monkeypatch.delenv("GPTQMODEL_CUTLASS_DIR", raising=False)
    monkeypatch.setattr(packed_kernels, "_offered", {})
    return choose


class Compiler:
    """Compiles these extensions, and notes which were asked for."""

    def __init__(self, *names: str) -> None:
        self.names, self.asked = names, list[str]()

    def __call__(self, code: str) -> bool:
        self.asked.append(code)
        return code in self.names


def _fails(_: str) -> bool:
    raise OSError("no route to host")


@pytest.mark.parametrize("compiles", [lambda _: False, _fails], ids=["no compiler", "an error"])
def test_what_cannot_be_compiled_is_not_chosen(compiles: Any, left: Callable[..., list[str]]) -> None:
    assert left("gptq", compiles, GPTQ) == ["gptq_torch_fused", "gptq_triton", "gptq_torch"]
    assert left("awq", compiles, AWQ) == ["awq_torch"]


def test_marlin_is_compiled_and_nothing_that_comes_after_it(left: Callable[..., list[str]]) -> None:
    """Nor before it: CUTLASS would be fetched."""
    compiler = Compiler("marlin_fp16", "exllamav2")
    assert left("gptq", compiler, GPTQ)[0] == "gptq_marlin"
    assert left("awq", compiler, AWQ)[0] == "awq_marlin"
    assert compiler.asked == ["marlin_fp16", "marlin_fp16"]


def test_without_marlin_the_next_in_order_is_compiled_before_loading(left: Callable[..., list[str]]) -> None:
    """Loading would compile these, and it is timed."""
    compiler = Compiler("exllamav2", "awq")
    assert left("gptq", compiler, GPTQ)[0] == "gptq_exllama_v2"
    assert left("awq", compiler, AWQ) == ["awq_gemm", "awq_torch"]
    assert compiler.asked == ["marlin_fp16", "exllamav2", "marlin_fp16", "exllamav2_awq", "awq"]


@pytest.mark.parametrize("bits", [2, 3])
def test_for_bits_that_no_compiled_kernel_takes_none_is_compiled(bits: int, left: Callable[..., list[str]]) -> None:
    """Nor left for gptqmodel to compile in vain: it asks ExLlama whether it is ready before it asks for its bits."""
    compiler = Compiler("marlin_fp16", "exllamav2")
    kept = left("gptq", compiler, {**GPTQ, "bits": bits})
    assert kept == ["gptq_torch_fused", *(["gptq_triton"] if bits == 2 else []), "gptq_torch"]
    assert compiler.asked == []


def test_a_checkpoint_that_marlin_does_not_take_gets_the_next_kernel(left: Callable[..., list[str]]) -> None:
    """One that is not symmetric; and one that a kernel refuses for reasons of its own, such as an old GPU."""
    compiler = Compiler("marlin_fp16", "exllamav2")
    assert left("gptq", compiler, {**GPTQ, "sym": False})[0] == "gptq_exllama_v2"
    assert compiler.asked == ["exllamav2"]
    assert left("gptq", compiler, GPTQ, refused="gptq_marlin")[0] == "gptq_exllama_v2"


def test_what_was_left_out_for_one_checkpoint_is_there_for_the_next(left: Callable[..., list[str]]) -> None:
    """With the inline engine one process loads several."""
    compiler = Compiler("marlin_fp16")
    assert "gptq_marlin" not in left("gptq", compiler, {**GPTQ, "bits": 3})
    assert left("gptq", compiler, GPTQ)[0] == "gptq_marlin"


def test_with_the_sources_of_cutlass_its_kernels_are_compiled_too(
    left: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTQMODEL_CUTLASS_DIR", "/somewhere")
    assert left("gptq", lambda code: code != "swordfish", GPTQ)[0] == "gptq_machete"


def test_the_names_are_gptqmodels_own() -> None:
    from gptqmodel import extension
    from gptqmodel.utils.backend import BACKEND
    from gptqmodel.utils.importer import AUTO_BACKEND_KERNEL_MAPPING

    assert packed_kernels.PACKS in extension.available_extensions()
    for name, code in {**packed_kernels.COMPILED, **packed_kernels.OF_CUTLASS}.items():
        assert BACKEND(name).value == name
        assert code in extension.available_extensions()
    for method, layout in (("gptq", "gptq"), ("awq", "gemm")):
        offered = AUTO_BACKEND_KERNEL_MAPPING[method][layout]
        compiled = [backend.value for backend in offered if backend.value in packed_kernels.COMPILED]
        assert compiled == [name for name in KERNELS if name in packed_kernels.COMPILED and name.startswith(f"{method}_")]
        for backend, kernel in offered.items():
            if backend.value in KERNELS:
                bits, sym, _ = KERNELS[backend.value]
                assert set(bits) <= set(kernel.SUPPORTS_BITS)
                assert sorted(sym) == sorted(kernel.SUPPORTS_SYM)


@pytest.mark.parametrize(
    ("method", "quantization", "compiled", "chosen"),
    [
        ("gptq", GPTQ, ["marlin_fp16", "exllamav2"], "ExllamaV2Linear"),
        ("gptq", {**GPTQ, "bits": 3}, [], "TorchLinear"),
        ("awq", AWQ, ["marlin_fp16", "exllamav2_awq", "awq"], "AwqGEMMLinear"),
    ],
)
def test_what_gptqmodel_itself_then_chooses_is_ready_and_nothing_is_compiled_while_it_loads(
    method: str, quantization: Mapping[str, Any], compiled: Sequence[str], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own selection, for a GPU that is not there and compilers that make all but Marlin and ExLlama's AWQ kernel."""
    import torch
    from gptqmodel import extension
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear
    from gptqmodel.utils import importer

    def forget() -> None:
        importer.clear_validation_cache()
        BaseQuantLinear.cached_validate_once.cache_clear()
        packed_kernels.is_ready.cache_clear()

    layout = quantization.get("checkpoint_format") or quantization["version"]
    kernels = importer.AUTO_BACKEND_KERNEL_MAPPING[method][layout]
    monkeypatch.setitem(importer.AUTO_BACKEND_KERNEL_MAPPING[method], layout, kernels.copy())
    monkeypatch.setattr(packed_kernels, "_offered", {})
    monkeypatch.delenv("GPTQMODEL_CUTLASS_DIR", raising=False)
    compiler = Compiler("exllamav2", "awq")
    monkeypatch.setattr(extension, "is_available", compiler)
    forget()
    try:
        compile_kernels(method, quantization)
        assert list(dict.fromkeys(compiler.asked)) == compiled
        compiler.asked.clear()
        found = importer.select_quant_linear(
            bits=quantization["bits"], group_size=128, desc_act=False, sym=method == "gptq", device=torch.device("cuda:0"),
            format=layout, quant_method=method, pack=False, pack_dtype=torch.int32,
        )  # fmt: skip
    finally:
        forget()
    assert (found.__name__, compiler.asked) == (chosen, [])


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_they_are_compiled_on_a_gpu_for_the_checkpoint_that_will_be_loaded(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """When it is prepared, which no timing sees."""
    calls: list[Any] = []
    quantization = {"quant_method": method, **(GPTQ if method == "gptq" else AWQ)}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(quantize, "compile_kernels", lambda *asked: calls.append(asked))
    monkeypatch.setattr(quantize, "dummy_folder", lambda *_: tmp_path)
    settings = Settings(checkpoint=replace(resolve("canary"), random_weights=True), threads=1, context=64)
    for device in ("cpu", "cuda", "cuda:1"):
        variant = Variant(method=method, precision="int4-g128")
        spec = Spec(model="canary", variant=variant, conditions=Conditions(device=device))
        assert quantize.prepared(spec, settings).path == tmp_path
    assert calls == [(method, quantization)] * 2


@pytest.mark.parametrize(
    ("method", "bits", "device", "expected"),
    [
        ("gptq", 4, "cpu", ["pack_block_cpu"]),
        ("gptq", 4, "cuda:1", ["pack_block_cpu", "gptq_block"]),
        ("gptq", 3, "cpu", []),
        ("gptq", 3, "cuda", ["gptq_block"]),
        ("awq", 4, "cuda", []),
    ],
)
def test_compilers_run_before_quantizing_is_timed(
    method: str, bits: int, device: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler()
    blocks = ModuleType("gptqmodel.quantization.gptq_cuda")
    blocks.block_update_available = lambda: compiler("gptq_block")  # type: ignore[attr-defined]
    library = ModuleType("gptqmodel")
    library.extension = SimpleNamespace(is_available=compiler)  # type: ignore[attr-defined]
    for name, module in (("gptqmodel", library), ("gptqmodel.quantization.gptq_cuda", blocks)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "gptqmodel.quantization", ModuleType("gptqmodel.quantization"))
    packed_kernels.is_ready.cache_clear()
    packed_kernels.compile_for_quantizing(method, bits, device)
    packed_kernels.is_ready.cache_clear()
    assert compiler.asked == expected


def test_the_quantizer_compiles_before_its_clock_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that stands still but for the compiler and the quantizer."""
    now = [0.0]

    def takes(seconds: float) -> None:
        now[0] += seconds

    model = SimpleNamespace(quantize=lambda *_, **__: takes(7.0), save=lambda _: None)
    library = ModuleType("gptqmodel")
    library.BACKEND = SimpleNamespace(GPTQ_TORCH="torch")  # type: ignore[attr-defined]
    library.GPTQModel = SimpleNamespace(load=lambda *_, **__: model)  # type: ignore[attr-defined]
    library.QuantizeConfig = SimpleNamespace  # type: ignore[attr-defined]
    words = ModuleType("gptqmodel.quantization")
    words.FORMAT = SimpleNamespace(GPTQ="gptq")  # type: ignore[attr-defined]
    words.METHOD = SimpleNamespace(GPTQ="gptq")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gptqmodel", library)
    monkeypatch.setitem(sys.modules, "gptqmodel.quantization", words)
    monkeypatch.setattr(quantize, "compile_for_quantizing", lambda *_: takes(31.0))
    monkeypatch.setattr(quantize, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    request = {
        "method": "gptq", "bits": 4, "group_size": 128, "device": "cpu", "seed": 0, "ids": [[1]], "source": "", "target": "",
        "trust_remote_code": False,
    }  # fmt: skip
    assert quantize.quantize(request)["quantize_s"] == 7.0
