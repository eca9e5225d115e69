"""Dynamic quantization against the tutorial's own snippet, PyTorch's own calls, and the arithmetic of the format."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quantbench.core.errors import UnsupportedError
from quantbench.core.scenario import Conditions, Spec, Variant
from quantbench.methods import METHODS, Settings
from quantbench.models import MODELS, BuiltinModel, ModuleRecipe
from quantbench.models.checkpoint import resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from quantbench.methods import LoadedModel, LoadedModule

INT8 = Variant(method="torch-dynamic", precision="int8")
FP32 = Variant(method="torch", precision="fp32")
LSTM_WEIGHTS = 80 * 10 + 80 * 20 + 80 * 20 + 80 * 20
LINEAR_WEIGHTS = 20 * 5
BIASES = 4 * 80 + 5
QPARAMS = 8  # a float32 scale and an int32 zero point a tensor
LAYERS, HIDDEN, KV, FFN, VOCABULARY = 6, 256, 128, 768, 2048
ROTARY = 2 * 16 * 4


def _settings(model: str) -> Settings:
    return Settings(checkpoint=resolve(model), threads=1, context=64)


def _spec(model: str, variant: Variant, **conditions: Any) -> Spec:
    return Spec(model=model, variant=variant, conditions=Conditions(**conditions))


def _module(variant: Variant, model: str = "lstm", **conditions: Any) -> AbstractContextManager[LoadedModule]:
    return METHODS[variant.method].open_module(_spec(model, variant, **conditions), _settings(model))


def _canary(variant: Variant) -> AbstractContextManager[LoadedModel]:
    return METHODS[variant.method].open(_spec("canary", variant), _settings("canary"))


def _quantize_dynamic(model: Any) -> Any:
    """As a tutorial calls it."""
    import torch
    from torch import nn

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.Linear}, dtype=torch.qint8)


@pytest.fixture
def tutorial(tmp_path: Path) -> dict[str, int]:
    """The tutorial's snippet, with its file names; sizes of its two files."""
    import torch
    from torch import nn

    class SimpleModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(input_size=10, hidden_size=20, num_layers=2)
            self.fc = nn.Linear(20, 5)

    model_fp32 = SimpleModel()
    model_int8 = _quantize_dynamic(model_fp32)
    torch.save(model_fp32.state_dict(), tmp_path / "model_fp32.pt")
    torch.save(model_int8.state_dict(), tmp_path / "model_int8.pt")
    return {name: (tmp_path / f"model_{name}.pt").stat().st_size for name in ("fp32", "int8")}


@pytest.mark.parametrize("variant", [FP32, INT8], ids=lambda variant: variant.precision)
def test_the_state_dict_is_as_large_as_the_tutorials_file(variant: Variant, tutorial: dict[str, int]) -> None:
    with _module(variant) as module:
        assert module.memory().state_dict_bytes == tutorial[variant.precision]


def test_the_modules_bytes_are_those_of_the_format() -> None:
    with _module(FP32) as reference, _module(INT8) as module:
        full, packed = reference.memory(), module.memory()

    assert full.weight_bytes == 4 * (LSTM_WEIGHTS + LINEAR_WEIGHTS + BIASES)
    assert packed.weight_bytes == LSTM_WEIGHTS + LINEAR_WEIGHTS + 5 * QPARAMS + 4 * BIASES
    assert packed.by_kind == {"parameters": 0, "buffers": 0, "packed_weights": packed.weight_bytes}
    assert reference.parameters == module.parameters == LSTM_WEIGHTS + LINEAR_WEIGHTS + BIASES


def test_the_modules_outputs_are_those_of_pytorchs_own_call() -> None:
    import torch

    own = MODELS["lstm"].module
    assert own
    expected = _quantize_dynamic(own.build())
    with _module(INT8) as module:
        value = module.example(3, 5)
        found = module.call(value)
    with torch.inference_mode():
        np.testing.assert_array_equal(found, expected(own.example(3, 5)).numpy())
    assert found.dtype == np.float32
    assert not np.array_equal(found, own.build()(value).detach().numpy())


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_half_precision_halves_the_module(precision: str, tolerance: float) -> None:
    with _module(FP32) as reference, _module(replace(FP32, precision=precision)) as module:
        assert 2 * module.memory().weight_bytes == reference.memory().weight_bytes
        ours, theirs = (each.call(each.example(0, 0)) for each in (module, reference))
    assert ours.dtype == np.float32
    assert 0 < np.abs(ours - theirs).max() < tolerance


def test_the_kernel_names_what_was_found_and_its_engine() -> None:
    import torch

    engine = torch.backends.quantized.engine
    with _module(INT8) as module:
        assert module.facts["kernel"] == f"DynamicQuantizedLSTM+DynamicQuantizedLinear-{engine}"


def test_an_engine_that_keeps_the_plain_weights_too_is_counted_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if not {"x86", "onednn"} <= set(torch.backends.quantized.supported_engines):
        pytest.skip("this build has not both engines")
    found = {}
    for engine in ("x86", "onednn"):
        monkeypatch.setattr(torch.backends.quantized, "engine", engine)
        with _module(INT8) as module:
            assert module.facts["kernel"].endswith(f"-{engine}")
            found[engine] = module.memory().weight_bytes
    assert found["onednn"] - found["x86"] == LSTM_WEIGHTS + LINEAR_WEIGHTS


def test_a_module_without_such_a_layer_is_refused(plug_in: Callable[..., None]) -> None:
    from torch import nn

    def build() -> Any:
        return nn.Sequential(nn.Conv1d(1, 1, 3))

    made = BuiltinModel(
        name="plain", about="for this test", folder=MODELS["lstm"].folder,
        module=ModuleRecipe(build=build, example=lambda _seed, _index: None),
    )  # fmt: skip
    plug_in(MODELS, made)
    with pytest.raises(UnsupportedError, match="found no Linear or LSTM layer"), _module(INT8, "plain"):
        pass


def test_another_device_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="CPU only; measure it with --device cpu"), _module(INT8, device="cuda"):
        pass


def test_a_module_is_not_written(tmp_path: Path) -> None:
    saver = METHODS["torch"].saver
    assert saver
    with pytest.raises(UnsupportedError, match="'lstm' is made from code and has no checkpoint to write"):
        saver(_spec("lstm", FP32), _settings("lstm"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_canarys_bytes_are_those_of_the_format() -> None:
    """Every Linear is int8, the output layer included; embeddings, norms and rotary buffers stay float32."""
    linear = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV + 3 * HIDDEN * FFN) + VOCABULARY * HIDDEN
    packed = linear + QPARAMS * (7 * LAYERS + 1)
    rest = 4 * (VOCABULARY * HIDDEN + (2 * LAYERS + 1) * HIDDEN) + ROTARY
    with _canary(INT8) as model:
        memory = model.memory()
        kernel = model.facts["kernel"]

    assert memory.by_kind["packed_weights"] == packed
    assert memory.weight_bytes == packed + rest
    assert memory.footprint_bytes == rest
    assert kernel.startswith("DynamicQuantizedLinear-")


def test_the_canarys_state_dict_is_what_torch_save_writes() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(resolve("canary").path, dtype=torch.float32)
    for variant, expected in ((FP32, model), (INT8, _quantize_dynamic(model))):
        stream = io.BytesIO()
        torch.save(expected.state_dict(), stream)
        before = torch.serialization.get_crc32_options()
        with _canary(variant) as loaded:
            assert loaded.memory().state_dict_bytes == stream.getbuffer().nbytes
        assert torch.serialization.get_crc32_options() == before


def test_its_weights_are_not_read_for_that_and_it_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU every storage would be copied to the host, twice a job."""
    import torch

    written: list[int] = []
    save = torch.save

    def watched(state: Any, counter: io.RawIOBase) -> None:
        write = counter.write
        counter.write = lambda data: written.append(memoryview(data).nbytes) or write(data)  # type: ignore[func-returns-value,method-assign]
        save(state, counter)

    with _canary(FP32) as loaded:
        monkeypatch.setattr(torch, "save", watched)
        first = loaded.memory()
        assert sum(written) < first.weight_bytes / 10
        assert first.state_dict_bytes is not None
        assert first.state_dict_bytes > first.weight_bytes
        count = len(written)
        assert count
        assert loaded.memory().state_dict_bytes == first.state_dict_bytes
        assert len(written) == count
