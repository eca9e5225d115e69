"""AWQ: checkpoints of AutoAWQ load as what they stand for, and what is made here is of their kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantbench.core.errors import UnsupportedError
from quantbench.core.scenario import Spec, Variant
from quantbench.methods import METHODS, LoadedModel, Settings
from quantbench.models.checkpoint import count_parameters, resolve
from quantbench.runtimes.gptqmodel import quantize

from .conftest import SHORT_SEARCH, packed_are_made

Array = NDArray[Any]
TOKENS = [1, *range(300, 364)]
LAYERS, HIDDEN, KV, FFN, VOCABULARY = 6, 256, 128, 768, 2048
LINEAR = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV + 3 * HIDDEN * FFN)
REST = 2 * VOCABULARY * HIDDEN + (2 * LAYERS + 1) * HIDDEN
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
"""Which of eight neighbouring outputs stands in each nibble of a word, from the lowest."""

AUTO_AWQ: Mapping[str, object] = {"quant_method": "awq", "zero_point": True, "group_size": 128, "bits": 4, "version": "gemm"}

pytestmark = pytest.mark.usefixtures("artifacts", "short_search")


def opened(model: Path | str, precision: str, method: str = "awq") -> AbstractContextManager[LoadedModel]:
    spec = Spec(model=str(model), variant=Variant(method=method, precision=precision))
    return METHODS[method].open(spec, Settings(checkpoint=resolve(str(model)), threads=1, context=256))


def logits(model: LoadedModel) -> Array:
    return np.concatenate([chunk.copy() for chunk in model.score(TOKENS)])


def distance(one: Array, other: Array) -> float:
    """Root mean square of the difference, over the spread of the logits."""
    spread = other - other.mean(axis=1, keepdims=True)
    return float(np.sqrt(np.square(one - other).mean() / np.square(spread).mean()))


def auto_awq_layer(codes: Array, zeros: Array, scales: Array) -> dict[str, Array]:
    """The tensors of a layer as AutoAWQ's GEMM kernels want them: outputs packed, in an order of their own."""

    def words(values: Array) -> Array:
        nibbles = values.reshape(len(values), -1, 8)[:, :, ORDER].astype(np.uint32)
        return (nibbles << (4 * np.arange(8, dtype=np.uint32))).sum(axis=2, dtype=np.uint32).view(np.int32)

    return {"qweight": words(codes.T), "qzeros": words(zeros.T), "scales": scales.T}


@pytest.fixture(scope="module")
def made(users_cache: Path) -> Path:
    """The canary in int4-g128 as this package makes it, of a short search."""
    preparer = METHODS["awq"].preparer
    assert preparer
    spec = Spec(model="canary", variant=Variant(method="awq", precision="int4-g128"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTBENCH_CACHE", str(users_cache))
        patch.setattr(quantize, "CALIBRATION_SEQUENCES", SHORT_SEARCH)
        packed_are_made()
        return preparer(spec, Settings(checkpoint=resolve("canary"), threads=1, context=256)).path


@pytest.mark.parametrize("precision", [each.name for each in METHODS["awq"].precisions])
def test_layers_packed_by_auto_awqs_rules_are_what_they_stand_for(
    precision: str, write_packed: Callable[..., tuple[Path, Path]]
) -> None:
    """Codes, zero points and scales packed by hand, against the same values in a dense checkpoint."""
    group_size = int(precision.removeprefix("int4-g"))
    packed, plain = write_packed(auto_awq_layer, 4, group_size, {**AUTO_AWQ, "group_size": group_size})
    with opened(packed, precision) as model:
        found = logits(model)
        assert model.facts["kernel"] == "gptqmodel-TorchAtenAwqLinear"
    with opened(plain, "fp32", "torch") as model:
        assert distance(found, logits(model)) < 0.008  # the kernel computes in bfloat16
    assert resolve(str(packed)).quantized == "awq"
    assert count_parameters(resolve(str(packed))) == LINEAR + REST


def test_layers_that_auto_awq_was_told_to_leave_are_counted_by_name(
    write_packed: Callable[..., tuple[Path, Path]], change_config: Callable[..., None]
) -> None:
    """A checkpoint may leave some layers in float16: loaded so, and said."""
    packed, plain = write_packed(auto_awq_layer, 4, 128, AUTO_AWQ)
    _put_back(packed, plain, "down_proj")
    change_config(packed, quantization_config={**AUTO_AWQ, "modules_to_not_convert": ["down_proj"]})
    with opened(packed, "int4-g128") as model:
        found = logits(model)
        assert model.facts["kernel"] == f"gptqmodel-TorchAtenAwqLinear ({LAYERS} of {7 * LAYERS} layers left in float16)"
    with opened(plain, "fp32", "torch") as model:
        assert distance(found, logits(model)) < 0.008


def test_what_is_made_here_is_what_auto_awq_makes(made: Path) -> None:
    """A zero point for each group, in the layout that vLLM and others read too."""
    from safetensors.torch import load_file

    config = json.loads((made / "config.json").read_text())["quantization_config"]
    assert {key: config[key] for key in AUTO_AWQ} == AUTO_AWQ
    zeros = [each.numpy() for name, each in load_file(made / "model.safetensors").items() if name.endswith(".qzeros")]
    assert len(zeros) == 7 * LAYERS
    assert len(np.unique(np.concatenate([each.ravel() for each in zeros]))) > 100  # not one and the same


@pytest.mark.parametrize("form", ["config.json", "quant_config.json"])
def test_a_checkpoint_from_elsewhere_gives_the_same_logits(
    form: str, made: Path, tmp_path: Path, change_config: Callable[..., None]
) -> None:
    """Of AutoAWQ's two spellings; files of weights by whatever name."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(made, folder)
    (folder / "quantize_config.json").unlink()
    change_config(folder, quantization_config=dict(AUTO_AWQ) if form == "config.json" else None)
    if form != "config.json":
        (folder / form).write_text(json.dumps({"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}))
        (folder / "model.safetensors").rename(folder / "awq_model_w4_g128.safetensors")
    with opened("canary", "int4-g128") as model:
        expected = logits(model)
    with opened(folder, "int4-g128") as model:
        np.testing.assert_array_equal(logits(model), expected)


def test_other_groups_are_named(made: Path, tmp_path: Path, change_config: Callable[..., None]) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(made, folder)
    with pytest.raises(UnsupportedError, match=r"in groups of 128 and awq/int4-g64 was asked for; ask for awq/int4-g128$"):
        opened(folder, "int4-g64").__enter__()
    change_config(folder, quantization_config={**AUTO_AWQ, "group_size": 256})
    with pytest.raises(UnsupportedError, match=r"groups of 256 .* awq offers int4-g128, int4-g64, int4-g32, so give the unq"):
        opened(folder, "int4-g64").__enter__()
    with pytest.raises(UnsupportedError, match=r"already quantized \(awq\)"):
        opened(folder, "int4-g128", "gptq")


def test_a_layout_without_a_kernel_here(made: Path, tmp_path: Path, change_config: Callable[..., None]) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(made, folder)
    change_config(folder, quantization_config={**AUTO_AWQ, "version": "gemv"})
    with pytest.raises(UnsupportedError) as caught:
        opened(folder, "int4-g128").__enter__()
    assert str(caught.value) == (
        f"gptqmodel has no kernel on cpu for {folder}, awq in format gemv; give a checkpoint in format gptq or gemm"
    )


def _put_back(packed: Path, plain: Path, layer: str) -> None:
    """Give one kind of layer of a packed checkpoint its plain weights."""
    from safetensors.torch import load_file, save_file

    tensors = {name: each for name, each in load_file(packed / "model.safetensors").items() if layer not in name}
    tensors |= {name: each for name, each in load_file(plain / "model.safetensors").items() if layer in name}
    save_file(tensors, packed / "model.safetensors")
