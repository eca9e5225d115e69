"""GPTQ: checkpoints of auto-gptq load as what they stand for, bytes follow the format, and nothing is quantized twice."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from quantbench.cli.app import app
from quantbench.core import children
from quantbench.core.errors import ModelError, UnsupportedError
from quantbench.core.scenario import Conditions, Spec, Variant
from quantbench.methods import METHODS, Artifact, LoadedModel, Settings
from quantbench.models.checkpoint import count_parameters, resolve
from quantbench.models.safetensors import weight_files
from quantbench.runtimes.gptqmodel import quantize
from quantbench.runtimes.gptqmodel.quantize import wide_products

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
SHORT_TEXT = textwrap.__file__
"""Python source is text, just long enough to calibrate on."""

pytestmark = pytest.mark.usefixtures("artifacts")


def asked(model: Path | str, precision: str, calibration: str = "") -> tuple[Spec, Settings]:
    """A spec of method gptq, and settings for it."""
    variant = Variant(method="gptq", precision=precision)
    spec = Spec(model=str(model), variant=variant, conditions=Conditions(calibration=calibration))
    return spec, Settings(checkpoint=resolve(str(model)), threads=1, context=256)


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
def odd_llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], Path]:
    """Save a random Llama of one layer; no process may be started for it."""
    monkeypatch.setattr(quantize, "call", _no_process)

    def save(hidden: int, ffn: int) -> Path:
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": 1, "vocab_size": 64}
        LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4)).save_pretrained(tmp_path / "odd")
        return tmp_path / "odd"

    return save


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
    reference = Spec(model=str(plain), variant=Variant(method="torch", precision="fp32"))
    with METHODS["torch"].open(reference, Settings(checkpoint=resolve(str(plain)), threads=1, context=256)) as model:
        exact = logits(model)
    assert "-Torch" in kernel
    assert distance(found, exact) < (0.008 if "Aten" in kernel else 0.002)  # that kernel computes in bfloat16
    assert count_parameters(resolve(str(packed))) == LINEAR + REST


def as_it_is(folder: Path) -> None:
    """auto-gptq since 0.4."""


def config_beside(folder: Path) -> None:
    """auto-gptq before: nothing in config.json, and a file named after the quantization."""
    _remove_config(folder)
    older = {key: value for key, value in AUTO_GPTQ.items() if key != "quant_method"}
    (folder / "quantize_config.json").write_text(json.dumps({**older, "model_file_base_name": "gptq_model-4bit-128g"}))
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-128g.safetensors")


def config_beside_shards(folder: Path) -> None:
    """The same in two files and an index."""
    from safetensors.numpy import save_file

    config_beside(folder)
    (path,) = folder.glob("*.safetensors")
    tensors = _tensors(path)
    path.unlink()
    parts = {f"{path.stem}-0000{number}-of-00002.safetensors": list(tensors)[number - 1 :: 2] for number in (1, 2)}
    for name, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / name)
    index = {"metadata": {}, "weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (folder / f"{path.name}.index.json").write_text(json.dumps(index))


def biases_of_zero(folder: Path) -> None:
    """auto-gptq gave every layer a bias, whether the model has one or not."""

    def add(tensors: dict[str, Array]) -> None:
        for name in [each for each in tensors if each.endswith(".scales")]:
            tensors[name.replace(".scales", ".bias")] = np.zeros(tensors[name].shape[1], np.float16)

    _change_tensors(folder, add)


def second_format(folder: Path) -> None:
    """The format of gptqmodel's own keeps zero points as they are."""

    def shift(tensors: dict[str, Array]) -> None:
        for name in [each for each in tensors if each.endswith(".qzeros")]:
            tensors[name] = (tensors[name].view(np.uint32) + np.uint32(0x11111111)).view(np.int32)

    _change_tensors(folder, shift)
    body = json.loads((folder / "config.json").read_text())
    body["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (folder / "config.json").write_text(json.dumps(body))


FORMS = [as_it_is, config_beside, config_beside_shards, biases_of_zero, second_format]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_checkpoint_from_elsewhere_gives_the_same_logits(
    form: Callable[[Path], None], elsewhere: Path, expected: Array
) -> None:
    form(elsewhere)
    before = sorted(elsewhere.iterdir())
    with opened(elsewhere, "int4-g128") as model:
        np.testing.assert_array_equal(logits(model), expected)
    assert resolve(str(elsewhere)).quantized == "gptq"
    found = prepare(elsewhere, "int4-g128")
    assert found.quantize_s is None
    assert found.file_bytes == sum(path.stat().st_size for path in weight_files(elsewhere))
    assert sorted(elsewhere.iterdir()) == before  # what is another's is left as it is


def test_an_act_order_checkpoint_gives_the_same_logits(
    elsewhere: Path, expected: Array, change_config: Callable[..., None]
) -> None:
    """Neurons in another order, each still in its group: the same model, with a g_idx that is not sorted."""
    order = np.random.default_rng(0).permutation(FFN)

    def permute(tensors: dict[str, Array]) -> None:
        for layer in range(LAYERS):
            for name in ("gate_proj", "up_proj"):
                prefix = f"model.layers.{layer}.mlp.{name}."
                assert len(np.unique(tensors[prefix + "qzeros"])) == 1  # symmetric: one zero point, in any order
                for key in ("qweight", "scales"):
                    tensors[prefix + key] = np.ascontiguousarray(tensors[prefix + key][:, order])
            prefix = f"model.layers.{layer}.mlp.down_proj."
            rows = unpacked(tensors[prefix + "qweight"], 4)[order]
            tensors[prefix + "qweight"] = np.ascontiguousarray(words(rows, 4))
            tensors[prefix + "g_idx"] = np.ascontiguousarray(tensors[prefix + "g_idx"][order])

    _change_tensors(elsewhere, permute)
    change_config(elsewhere, quantization_config={**AUTO_GPTQ, "desc_act": True})
    with opened(elsewhere, "int4-g128") as model:
        assert distance(logits(model), expected) < 0.004


def test_every_layer_of_the_blocks_is_quantized_and_bytes_are_counted_after_repacking(made: Path) -> None:
    """The CPU kernel repacks on first use into attributes that are no buffers: doubled scales, and an order of rows."""
    with opened(made, "int4-g128") as model:
        loaded = model.memory()
        found = [type(each).__name__ for each in model.model.modules() if hasattr(each, "qweight")]  # type: ignore[attr-defined]
        linear = [each for each in model.model.modules() if type(each).__name__ == "Linear"]  # type: ignore[attr-defined]
        list(model.generate(TOKENS, 2))
        running = model.memory()

    assert found == ["TorchAtenLinear"] * QUANTIZED
    assert len(linear) == 1  # the output layer
    assert model.facts["kernel"] == "gptqmodel-TorchAtenLinear"
    groups = LINEAR // 128
    zeros_repacked = 2 * groups - groups // 2
    scales_and_zeros, order = 2 * 2 * groups, 4 * INPUTS
    assert running.weight_bytes - loaded.weight_bytes == zeros_repacked + scales_and_zeros + order


@pytest.mark.parametrize(
    ("precision", "changes", "sentence"),
    [
        ("int4-g64", {}, "is quantized to 4 bits in groups of 128 and gptq/int4-g64 was asked for; ask for gptq/int4-g128"),
        ("int8", {}, "is quantized to 4 bits in groups of 128 and gptq/int8 was asked for; ask for gptq/int4-g128"),
        (
            "int4-g128", {"group_size": -1},
            "is quantized to 4 bits with one group a row and gptq/int4-g128 was asked for; gptq offers {}, so give the "
            "unquantized checkpoint".format(", ".join(each.name for each in METHODS["gptq"].precisions)),
        ),
    ],
)  # fmt: skip
def test_a_precision_that_the_checkpoint_is_not(
    precision: str, changes: dict[str, object], sentence: str, elsewhere: Path, change_config: Callable[..., None]
) -> None:
    change_config(elsewhere, quantization_config={**AUTO_GPTQ, **changes})
    with pytest.raises(UnsupportedError) as caught:
        prepare(elsewhere, precision)
    assert str(caught.value) == f"{elsewhere} {sentence}"


def test_other_methods_do_not_open_it(elsewhere: Path) -> None:
    config_beside(elsewhere)
    checkpoint = resolve(str(elsewhere))
    for name in ("torch", "awq", "bitsandbytes"):
        with pytest.raises(UnsupportedError, match=r"cannot open a checkpoint that is already quantized \(gptq\)"):
            METHODS[name].check(checkpoint)


def test_packed_weights_that_nothing_explains(elsewhere: Path) -> None:
    """Else the reference would load them as an unquantized model with random layers."""
    _remove_config(elsewhere)
    with pytest.raises(ModelError, match=r"holds packed weights, but nothing says how .* add the quantize_config\.json"):
        resolve(str(elsewhere))


def test_a_config_without_bits(elsewhere: Path, change_config: Callable[..., None]) -> None:
    change_config(elsewhere, quantization_config={"quant_method": "gptq", "group_size": 128, "bits": None})
    with pytest.raises(ModelError, match=r"lacks bits or group_size"):
        prepare(elsewhere, "int4-g128")


def test_several_files_without_an_index(elsewhere: Path) -> None:
    config_beside(elsewhere)
    shutil.copyfile(elsewhere / "gptq_model-4bit-128g.safetensors", elsewhere / "gptq_model-4bit-32g.safetensors")
    with pytest.raises(ModelError, match=r"has 2 weight files \(gptq_model-4bit-128g\.safetensors, \.\.\.\) and no index"):
        prepare(elsewhere, "int4-g128")


def test_a_layer_that_is_not_packed_is_no_silent_fallback(elsewhere: Path) -> None:
    def lose(tensors: dict[str, Array]) -> None:
        del tensors["model.layers.3.mlp.up_proj.qweight"]

    _change_tensors(elsewhere, lose)
    with pytest.raises(ModelError, match=r"made 42 quantized layers of the 41 that the checkpoint holds"):
        opened(elsewhere, "int4-g128").__enter__()


@pytest.mark.parametrize(
    ("variant", "hidden", "ffn", "sentence"),
    [
        ("gptq/int4-g128", 192, 384, "groups of 128 do not divide the rows of 192 of {}; ask for int4-g64 or int4-g32"),
        ("gptq/int3", 256, 96, "groups of 128 do not divide the rows of 96 of {}; ask for int4-g32"),
        ("awq/int4-g64", 256, 96, "groups of 64 do not divide the rows of 96 of {}; ask for int4-g32"),
        ("gptq/int4-g32", 80, 128, "groups of 32 do not divide the rows of 80 of {}; no precision of gptq divides all rows"),
        ("awq/int4-g32", 256, 96, "gptqmodel makes AWQ of layers with a multiple of 64 outputs and {} has 96; use gptq"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_before_anything_is_quantized(
    variant: str, hidden: int, ffn: int, sentence: str, odd_llama: Callable[[int, int], Path]
) -> None:
    folder = odd_llama(hidden, ffn)
    method, _, precision = variant.partition("/")
    spec = Spec(model=str(folder), variant=Variant(method=method, precision=precision))
    preparer = METHODS[method].preparer
    assert preparer
    with pytest.raises(UnsupportedError) as caught:
        preparer(spec, Settings(checkpoint=resolve(str(folder)), threads=1, context=0))
    before, _, after = sentence.partition("{}")
    assert str(caught.value).startswith(f"{before}model.layers.0.")
    assert str(caught.value).endswith(after)


def test_a_checkpoint_is_quantized_once(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "call", _no_process)
    found = prepare("canary", "int4-g128")
    assert found.path == made
    assert found.quantize_s
    assert found.file_bytes == (made / "model.safetensors").stat().st_size


BARS = "quantizing: 0%| | 0/6\rquantizing: 17%|#6 | 1/6 \x1b[32mINFO\x1b[0m layer 0\r"


@pytest.mark.parametrize(
    ("ends", "kind", "sentence"),
    [
        ("exit 1", ModelError, "gptqmodel could not quantize this checkpoint (gptq at 4 bits): NotImplementedError: no op"),
        (
            "kill -9 $$", MemoryError,
            "gptqmodel's quantization (gptq at 4 bits) ran out of memory; use a smaller model or precision",
        ),
    ],
)
def test_a_run_that_fails_says_why_and_leaves_nothing(
    ends: str, kind: type[Exception], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "said").write_text(f"{BARS}\nNotImplementedError: no op\n{BARS}")
    kills = iter(range(9))
    monkeypatch.setattr(children, "oom_kills", lambda: next(kills))
    monkeypatch.setattr(children, "python_module", lambda *_: ["sh", "-c", f"cat {tmp_path / 'said'} >&2; {ends}"])
    with pytest.raises(kind) as caught:
        prepare("canary", "int4-g128", SHORT_TEXT)
    assert str(caught.value) == sentence
    assert list((tmp_path / "cache" / "gptqmodel").iterdir()) == []


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning")
def test_the_command_line_writes_what_transformers_alone_loads(tmp_path: Path, made: Path, expected: Array) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert made
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["quantize", "canary", "--method", "gptq", "--precision", "int4-g128", "-o", str(out)])
    assert result.exit_code == 0, result.stderr
    assert {path.suffix for path in out.iterdir()} <= {".json", ".model", ".safetensors"}
    model = AutoModelForCausalLM.from_pretrained(out, dtype="float16").eval()
    with torch.inference_mode():
        found = model(torch.tensor([TOKENS])).logits[0].float().numpy()
    assert distance(found, expected) < 0.001
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(tokenizer.encode("return None"), skip_special_tokens=True).strip() == "return None"


def _no_process(*arguments: object, **_: object) -> None:
    raise AssertionError(f"a process was started: {arguments}")


def _remove_config(folder: Path) -> None:
    body = json.loads((folder / "config.json").read_text())
    del body["quantization_config"]
    (folder / "config.json").write_text(json.dumps(body))


def _tensors(path: Path) -> dict[str, Array]:
    """Numpy has no bfloat16; what is not packed is float16 in auto-gptq's files anyway."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    return {name: (each.half() if each.is_floating_point() else each).numpy() for name, each in tensors.items()}


def _change_tensors(folder: Path, change: Callable[[dict[str, Array]], None]) -> None:
    from safetensors.numpy import save_file

    tensors = _tensors(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("bias", [True, False])
def test_bfloat16_is_multiplied_in_float32_and_rounded_once(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float64, rounded; the order of a float32 sum turns a few in a thousand to the neighbouring bfloat16."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layer, values = nn.Linear(256, 96, bias=bias).bfloat16(), torch.randn(2, 32, 256).bfloat16()
    seen, linear, before = [], nn.functional.linear, nn.Linear.forward
    monkeypatch.setattr(nn.functional, "linear", lambda *each: seen.append(each[0].dtype) or linear(*each))
    with torch.inference_mode(), wide_products():
        found = layer(values)
        layer.float()(values.float())
    exact = values.double() @ layer.weight.detach().double().T + (layer.bias.detach().double() if bias else 0)

    assert seen == [torch.float32, torch.float32]
    assert found.dtype == torch.bfloat16
    assert float((found == exact.bfloat16()).double().mean()) > 0.995
    torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=2**-7)
    assert nn.Linear.forward is before
