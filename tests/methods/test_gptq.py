"""GPTQ: checkpoints of auto-gptq load as what they stand for, bytes follow the format, and nothing is quantized twice."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import textwrap
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from quantbench.cli import app
from quantbench.errors import ModelError, UnsupportedError
from quantbench.methods import METHODS, Artifact, LoadedModel, Settings
from quantbench.methods._gptqmodel import last_words
from quantbench.models._checkpoint import count_parameters, resolve, weight_files
from quantbench.scenario import Conditions, Scenario, Variant

Array = NDArray[Any]
TOKENS = [1, *range(300, 364)]
LAYERS, HIDDEN, KV, FFN, VOCABULARY = 6, 256, 128, 768, 2048
LINEAR = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV + 3 * HIDDEN * FFN)
INPUTS = LAYERS * (6 * HIDDEN + FFN)
"""Rows of all layers: each has an entry in g_idx."""

REST = 2 * VOCABULARY * HIDDEN + (2 * LAYERS + 1) * HIDDEN
QUANTIZED = 7 * LAYERS
AUTO_GPTQ: Mapping[str, object] = {
    "bits": 4, "group_size": 128, "damp_percent": 0.1, "desc_act": False, "static_groups": False, "sym": True,
    "true_sequential": True, "model_name_or_path": None, "model_file_base_name": "model", "quant_method": "gptq",
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("artifacts")


def asked(model: Path | str, precision: str, calibration: str = "") -> tuple[Scenario, Settings]:
    """A scenario of method gptq, and settings for it."""
    variant = Variant(method="gptq", precision=precision)
    scenario = Scenario(model=str(model), variant=variant, prompts="two", conditions=Conditions(calibration=calibration))
    return scenario, Settings(checkpoint=resolve(str(model)), threads=2, context=256)


def opened(model: Path | str, precision: str) -> AbstractContextManager[LoadedModel]:
    return METHODS["gptq"].open(*asked(model, precision))


def prepare(model: Path | str, precision: str, calibration: str = "") -> Artifact:
    preparer = METHODS["gptq"].preparer
    assert preparer
    return preparer(*asked(model, precision, calibration))


def logits(model: LoadedModel) -> Array:
    return np.concatenate([chunk.copy() for chunk in model.score(TOKENS)])


def distance(one: Array, other: Array) -> float:
    """Root mean square of the difference, over the spread of the logits."""
    spread = other - other.mean(axis=1, keepdims=True)
    return float(np.sqrt(np.square(one - other).mean() / np.square(spread).mean()))


def words(values: Array, bits: int) -> Array:
    """Pack along the first axis: a stream of ``bits`` a value, low bits first, in words of 32."""
    stream = (values[:, None, :] >> np.arange(bits)[None, :, None]) & 1
    octets = np.packbits(stream.reshape(-1, values.shape[1]).astype(np.uint8), axis=0, bitorder="little")
    return np.ascontiguousarray(octets.T).view("<i4").T


def unpacked(packed: Array, bits: int) -> Array:
    """The inverse of ``words``."""
    octets = np.ascontiguousarray(packed.T).view(np.uint8).T
    stream = np.unpackbits(octets, axis=0, bitorder="little").reshape(-1, bits, packed.shape[1])
    return (stream.astype(np.int64) << np.arange(bits)[None, :, None]).sum(axis=1)


def auto_gptq_layer(codes: Array, zeros: Array, scales: Array, bits: int, stored_less: int = 1) -> dict[str, Array]:
    """The tensors of a layer as auto-gptq packs them: zero points one less than they are."""
    group_size = codes.shape[1] // scales.shape[1]
    return {
        "qweight": words(codes.T, bits),
        "qzeros": words(zeros - stored_less, bits).T,
        "scales": scales.T,
        "g_idx": (np.arange(codes.shape[1]) // group_size).astype(np.int32),
    }


@pytest.fixture(scope="module")
def made(users_cache: Path) -> Path:
    """The canary in int4-g128 as this package makes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTBENCH_CACHE", str(users_cache))
        return prepare("canary", "int4-g128").path


@pytest.fixture(scope="module")
def expected(made: Path) -> Array:
    """Its logits."""
    with opened(made, "int4-g128") as model:
        return logits(model)


@pytest.fixture
def elsewhere(made: Path, tmp_path: Path, change_config: Callable[..., None]) -> Path:
    """The same weights, as auto-gptq wrote them with its config in config.json."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(made, folder)
    (folder / "quantize_config.json").unlink()
    (folder / "quant_log.csv").unlink()
    change_config(folder, quantization_config=AUTO_GPTQ, dtype=None, torch_dtype="float16")
    return folder


@pytest.fixture
def short_text(tmp_path: Path) -> str:
    path = tmp_path / "calibration.txt"
    path.write_text(Path(textwrap.__file__).read_text()[:12000])
    return str(path)


@pytest.mark.parametrize("precision", [each.name for each in METHODS["gptq"].precisions])
def test_layers_packed_by_auto_gptqs_rules_are_what_they_stand_for(
    precision: str, write_packed: Callable[..., tuple[Path, Path]]
) -> None:
    """Codes, zero points less one and scales, packed by hand and asymmetric, against the same values in a dense checkpoint."""
    name, _, group = precision.partition("-g")
    bits, group_size = int(name.removeprefix("int")), int(group or 128)

    def layout(codes: Array, zeros: Array, scales: Array) -> dict[str, Array]:
        return auto_gptq_layer(codes, zeros, scales, bits)

    config = {**AUTO_GPTQ, "bits": bits, "group_size": group_size, "sym": False}
    packed, plain = write_packed(layout, bits, group_size, config)
    with opened(packed, precision) as model:
        found = logits(model)
        kernel = model.facts["kernel"]
    reference = Scenario(model=str(plain), variant=Variant(method="torch", precision="fp32"), prompts="two")
    with METHODS["torch"].open(reference, Settings(checkpoint=resolve(str(plain)), threads=2, context=256)) as model:
        exact = logits(model)
    print(precision, kernel, distance(found, exact))
    assert distance(found, exact) < 0.02
    assert count_parameters(resolve(str(packed))) == LINEAR + REST
