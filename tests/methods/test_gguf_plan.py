"""Sizes of GGUF files before there are any: held to real files byte for byte, and to the figures that llama.cpp publishes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from quantbench.core.errors import MissingDependency, ModelError, UnsupportedError
from quantbench.core.install import install_hint
from quantbench.core.job import Checkpoint
from quantbench.core.scenario import Spec, Variant
from quantbench.methods import METHODS, Settings
from quantbench.models.architecture import FAMILIES, Architecture, read
from quantbench.models.architecture.shapes import from_shapes
from quantbench.models.checkpoint import count_parameters, resolve
from quantbench.models.footprint import Weights
from quantbench.models.meta import as_shapes, describe_config
from quantbench.planning.planner import read_architecture
from quantbench.runtimes.llama_cpp import kv_cache_bytes, plan
from quantbench.runtimes.llama_cpp.files import f16_file, quantized_file, tensor_bytes
from quantbench.runtimes.llama_cpp.plan import gguf_architecture

METHOD = METHODS["gguf"]
ALL = [each.name for each in METHOD.precisions]

PUBLISHED = {
    "iq1_s": 2.0042, "iq1_m": 2.1460, "iq2_xxs": 2.3824, "iq2_xs": 2.5882, "iq2_s": 2.7403, "iq2_m": 2.9294,
    "iq3_xxs": 3.2548, "iq3_xs": 3.4977, "iq3_s": 3.6606, "iq3_m": 3.7628, "iq4_xs": 4.4597, "iq4_nl": 4.6818,
    "q2_k_s": 2.9697, "q2_k": 3.1593, "q3_k_s": 3.6429, "q3_k_m": 3.9960, "q3_k_l": 4.2979, "q4_k_s": 4.6672,
    "q4_k_m": 4.8944, "q5_k_s": 5.5704, "q5_k_m": 5.7036, "q6_k": 6.5633, "q8_0": 8.5008, "f16": 16.0005,
}  # fmt: skip
"""Bits per weight of Llama-3.1-8B in tools/quantize/README.md of the llama.cpp inside llama-cpp-python 0.3.36."""

ROTARY_FACTORS = 64
"""llama.cpp's converter adds so many to Llama 3.1's parameters: one for each pair of a head's 128 values."""

EVERY_FAMILY: dict[str, Any] = {
    "hidden_size": 256, "n_embd": 256, "intermediate_size": 512, "moe_intermediate_size": 256, "ffn_dim": 512,
    "shared_expert_intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_kv_heads": 2, "head_dim": 64, "vocab_size": 512, "max_position_embeddings": 64, "n_positions": 64,
    "num_local_experts": 4, "num_experts_per_tok": 2, "attention_types": [[["global"], 2]], "pad_token_id": 0,
}  # fmt: skip
"""Keys from which every family can be read; but that Falcon takes no head_dim."""

FROM_MODULES = {"falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neo", "gpt_neox", "opt", "phi", "phi3"}
WITHOUT_GGUF = {"opt", "gpt_neo"}

pytestmark = pytest.mark.usefixtures("artifacts")


def forecast(architecture: Architecture, precisions: Sequence[str] = ALL) -> Mapping[str, Weights]:
    assert METHOD.forecaster
    return METHOD.forecaster(architecture, precisions)


def prepared(spec: Spec, checkpoint: Checkpoint) -> tuple[int | None, str]:
    """Tensor bytes of the file that a run uses, or why it has none."""
    assert METHOD.preparer
    try:
        made = METHOD.preparer(spec, Settings(checkpoint=checkpoint, threads=1, context=64))
    except UnsupportedError as error:
        return None, str(error)
    return tensor_bytes(made.path), ""


def small(model_type: str, **changes: object) -> Architecture:
    body = EVERY_FAMILY | {"model_type": model_type} | changes
    if model_type not in FROM_MODULES:
        return read(body, "small", "config.json")
    taken = {key: value for key, value in body.items() if (model_type, key) != ("falcon", "head_dim")}
    return from_shapes(taken, "small", "config.json", as_shapes(describe_config(taken)))


@pytest.fixture(scope="module")
def canary(users_cache: Path) -> Mapping[str, Weights]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTBENCH_CACHE", str(users_cache))
        return forecast(read_architecture("canary"))


@pytest.mark.parametrize(
    "precision",
    ["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_1", "q4_k_m", "q4_0", "q3_k_m", "q2_k", "iq4_nl", "iq4_xs", "iq3_m",
     "tq1_0", "q1_0"],
)  # fmt: skip
def test_sizes_are_those_of_the_real_files(canary: Mapping[str, Weights], precision: str) -> None:
    assert canary[precision].weight_bytes == tensor_bytes(quantized_file(resolve("canary"), precision).path)


@pytest.mark.parametrize("precision", ["iq3_xxs", "iq3_xs", "q4_0-imat", "iq4_xs-imat"])
def test_sizes_with_an_importance_matrix_are_those_of_the_real_files(
    canary: Mapping[str, Weights], precision: str, tmp_path: Path
) -> None:
    """Types depend on whether there is a matrix, not on its values: here all ones."""
    matrix = tmp_path / "ones" / "imatrix.npz"
    matrix.parent.mkdir()
    tensors = GGUFReader(f16_file(resolve("canary"))).tensors
    weights: dict[str, Any] = {each.name: np.ones(each.shape[0], np.float32) for each in tensors if len(each.shape) > 1}
    np.savez(matrix, **weights)

    made = quantized_file(resolve("canary"), precision.removesuffix("-imat"), matrix)

    assert canary[precision].weight_bytes == tensor_bytes(made.path)
    assert canary[precision].note.endswith("with an importance matrix")


def test_a_forecast_says_whose_recipe_it_is_and_what_runs_it(canary: Mapping[str, Weights]) -> None:
    from llama_cpp import __version__

    assert list(canary) == ALL
    assert canary["q4_k_m"].note == f"llama.cpp of llama-cpp-python {__version__}"
    assert {each.dtype for each in canary.values()} == {"fp16"}
    assert {each.file_bytes for each in canary.values()} == {None}  # the vocabulary is not known


def test_all_published_bits_per_weight_of_llama_3_1_8b() -> None:
    """To all four decimals; IQ3_XXS as published was made with an importance matrix, and so it is here."""
    llama = read_architecture("llama-3.1-8b")
    parameters = llama.parameters + ROTARY_FACTORS
    assert parameters == 8_030_261_312

    found = forecast(llama)

    bits = {name: round(8 * (found[name].weight_bytes or 0) / parameters, 4) for name in PUBLISHED}
    assert len(bits) == 24
    assert bits == PUBLISHED


def test_the_matrix_changes_the_types_where_llama_cpp_says_so() -> None:
    """Q4_0 takes Q4_1 for the first eighth of ffn_down with a matrix, IQ4_XS spares Q5_K there."""
    found = {name: each.weight_bytes for name, each in forecast(read_architecture("llama-3.1-8b")).items()}

    down, block = 4096 * 14336, 32
    assert found["q4_0-imat"] == (found["q4_0"] or 0) + 4 * down // block * (20 - 18)
    assert found["iq4_xs-imat"] == (found["iq4_xs"] or 0) - 4 * down // 256 * (176 - 136)
    assert found["q4_k_m-imat"] == found["q4_k_m"]


@pytest.mark.parametrize("model_type", sorted({each for family in FAMILIES for each in family.model_types} | FROM_MODULES))
def test_every_family_is_accepted_by_llama_cpp(model_type: str) -> None:
    """Its own hyperparameters and tensor names; what the file holds adds up to the parameters."""
    architecture = small(model_type)
    found = forecast(architecture)

    if model_type in WITHOUT_GGUF:
        reason = f"llama.cpp has no architecture for model type {model_type!r}; ask for torch"
        assert {(each.weight_bytes, each.note) for each in found.values()} == {(None, reason)}
        return
    experts = any(tensor.role == "experts" for tensor in architecture.tensors)
    assert {name for name, each in found.items() if each.weight_bytes is None} == (set() if experts else {"mxfp4_moe"})
    assert found["f32"].weight_bytes == 4 * architecture.parameters
    whole = {name: each.weight_bytes or 0 for name, each in found.items()}
    assert whole["f16"] == whole["bf16"]
    assert whole["f32"] > whole["f16"] > whole["q8_0"] > whole["q6_k"] > whole["q4_k_m"] > whole["q2_k"] > whole["iq1_s"]


PHI3: dict[str, Any] = {
    "pad_token_id": 0,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, "long_factor": [1.0] * 32,
        "short_factor": [1.0] * 32,
    },
}  # fmt: skip
TIED, EXPERTS = {"tie_word_embeddings": True}, {"num_local_experts": 8}


@pytest.mark.parametrize(("family", "options"), [("qwen2", TIED), ("phi3", PHI3), ("mixtral", EXPERTS)])
def test_converted_families_are_as_forecast(
    family: str, options: Mapping[str, Any], small_checkpoint: Callable[..., Checkpoint]
) -> None:
    """Tied embeddings and biases; merged matrices and factors of rotary scaling; experts, merged by transformers."""
    checkpoint = small_checkpoint(family, **options)
    found = forecast(read_architecture(str(checkpoint.path)))

    precisions = ["f16", "q8_0", "q4_k_m", "q3_k_m", "iq4_xs", *(["mxfp4_moe"] if family == "mixtral" else [])]
    made = {name: tensor_bytes(quantized_file(checkpoint, name).path) for name in precisions}
    assert made == {name: found[name].weight_bytes for name in precisions}


def test_shapes_that_do_not_fill_blocks_get_other_types_and_say_so() -> None:
    found = forecast(small("llama", hidden_size=96, intermediate_size=160, head_dim=24))

    refused = {name: each.note for name, each in found.items() if each.weight_bytes is None}
    assert set(refused) == {"q1_0"} | ({"mxfp4_moe"} & set(refused))
    assert "no tensor type fallback is defined for type q1_0" in refused["q1_0"]
    plain = {name for name, each in found.items() if each.weight_bytes and "fall back" not in each.note}
    assert plain == {"f32", "f16", "bf16", "q8_0", *plain & {"mxfp4_moe"}}
    assert ", fall back to q8_0: their rows" in found["q4_0"].note  # the output layer, Q6_K in a Q4_0 file


def test_a_135m_llama_falls_back_where_llama_cpp_says_so() -> None:
    """SmolLM-135M's shape: rows of 576 fill no blocks of 256, those of 1536 do; figures of llama.cpp's own quantization."""
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "tie_word_embeddings": True}  # fmt: skip
    found = forecast(read({**shape, "model_type": "llama", "max_position_embeddings": 2048}, "small", "c"), ALL)

    assert {name for name, each in found.items() if each.weight_bytes is None} == {"q1_0", "mxfp4_moe"}
    assert "180 of 272 tensors" in found["q4_k_m"].note
    assert round(8 * (found["q4_k_m"].weight_bytes or 0) / 134_515_008, 2) == 6.17


def test_tensors_that_gguf_cannot_name_are_named() -> None:
    """OLMo 2 is not known here and is read as a Llama, whose norms stand elsewhere."""
    (reason,) = {each.note for each in forecast(small("olmo2", num_local_experts=None, attention_types=None)).values()}

    assert "has no name for tensor model.layers.0.input_layernorm.weight of model type 'olmo2'" in reason


def test_an_assertion_of_llama_cpp_is_a_reason() -> None:
    """More layers than llama.cpp has room for end its process, not this one."""
    found = forecast(small("llama", num_hidden_layers=600))

    assert {each.weight_bytes for each in found.values()} == {None}
    assert "llama.cpp's dry run ended with SIGABRT (llama-model.cpp:" in found["q4_k_m"].note


def test_a_dry_run_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TIMEOUT_S", 0.05)

    (reason,) = {each.note for each in forecast(small("llama", vocab_size=1024)).values()}

    assert reason == "llama.cpp's dry run took more than 0.05 s and was stopped"


def test_a_forecast_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One child answers for all precisions, whichever are asked for first; other shapes are asked anew."""
    started = []
    start = subprocess.Popen

    def counted(*arguments: Any, **options: Any) -> Any:
        started.append(arguments)
        return start(*arguments, **options)

    monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "Popen", counted)

    first = forecast(small("llama"), ["q4_0"])
    again = forecast(small("llama"))
    other = forecast(small("llama", vocab_size=768))

    assert len(started) == 2
    assert first["q4_0"] == again["q4_0"] != other["q4_0"]
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == sorted(
        2 * ["asked.json", "checksums.json", "result.json"]
    )


def test_planning_imports_no_library_of_numbers() -> None:
    code = (
        "import sys; from quantbench.planning.planner import read_architecture; from quantbench.methods import METHODS;"
        "found = METHODS['gguf'].forecaster(read_architecture('canary'), ['q8_0']); assert found['q8_0'].weight_bytes;"
        "print(sorted({'torch', 'transformers', 'numpy', 'gguf', 'llama_cpp'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_a_library_that_is_not_installed_is_a_reason_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHOD, "requires", ("no_such_module",))
    monkeypatch.setattr(plan, "REQUIRES", ("no_such_module",))

    (reason,) = {(each.weight_bytes, each.note) for each in forecast(read_architecture("canary")).values()}
    assert reason == (
        None, f"the sizes come from llama.cpp, which needs no_such_module, not installed; {install_hint('gguf')}",
    )  # fmt: skip
    with pytest.raises(MissingDependency, match=r"cannot be read without no_such_module, not installed; pip install"):
        gguf_architecture(Path("x.gguf"))


@pytest.mark.parametrize("precision", ["f16", "q4_k_m"])
def test_a_ready_files_architecture_is_that_of_its_checkpoint(precision: str) -> None:
    path = quantized_file(resolve("canary"), precision).path

    found, expected = gguf_architecture(path), read_architecture("canary")

    for name in ("layers", "width", "inner_width", "attention_width", "vocabulary", "context", "tied", "parameters"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.parameters == count_parameters(resolve(str(path)))
    assert (found.gguf, found.model_type) == (path, "llama")
    roles = sorted((tensor.role, tensor.shape) for tensor in expected.tensors)
    assert sorted((tensor.role, tensor.shape) for tensor in found.tensors) == roles


def test_an_unquantized_file_is_forecast_by_a_dry_run_on_itself(canary: Mapping[str, Weights]) -> None:
    path = f16_file(resolve("canary"))

    found = forecast(gguf_architecture(path))

    assert (found["f16"].weight_bytes, found["f16"].file_bytes) == (canary["f16"].weight_bytes, path.stat().st_size)
    plain = ("f32", "bf16", "q8_0", "q4_k_m", "iq3_m", "q2_k")
    assert {name: found[name].weight_bytes for name in plain} == {name: canary[name].weight_bytes for name in plain}
    assert found["q4_k_m-imat"].weight_bytes is found["iq2_m"].weight_bytes is None


@pytest.mark.parametrize("precision", ["q8_0", "q4_k_m", "q4_k_m-imat", "iq2_m", "mxfp4_moe"])
@pytest.mark.parametrize("own", ["f16", "q4_k_m"])
def test_what_cannot_be_made_of_a_ready_file_has_the_reason_that_a_run_gives(own: str, precision: str) -> None:
    path = quantized_file(resolve("canary"), own).path
    checkpoint = resolve(str(path))
    spec = Spec(model=str(path), variant=Variant(method="gguf", precision=precision))

    found = forecast(gguf_architecture(checkpoint.path), [precision])[precision]

    size, refusal = prepared(spec, checkpoint)
    assert found.weight_bytes == size
    assert refusal in ("", found.note)
    assert (size is None) == bool(refusal)


def test_a_ready_file_that_is_damaged_is_one_sentence(tmp_path: Path) -> None:
    whole = quantized_file(resolve("canary"), "q8_0").path.read_bytes()
    cut, other = tmp_path / "cut.gguf", tmp_path / "other.gguf"
    cut.write_bytes(whole[: len(whole) // 2])
    other.write_bytes(b"no such thing")

    with pytest.raises(ModelError, match=r"cut\.gguf is cut short or damaged; make or download it again"):
        gguf_architecture(cut)
    with pytest.raises(ModelError, match=r"other\.gguf is not a GGUF file"):
        gguf_architecture(other)


def test_a_header_that_says_too_little_is_one_sentence(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "little.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_embedding_length(64)
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(ModelError, match=r"little\.gguf has no llama\.block_count in its header"):
        gguf_architecture(path)


def test_keys_and_values_of_different_lengths_are_both_counted(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "uneven.gguf"
    writer = GGUFWriter(path, "llama")
    for add, number in (
        (writer.add_block_count, 3), (writer.add_embedding_length, 64), (writer.add_head_count, 4), (writer.add_key_length, 96),
        (writer.add_value_length, 32), (writer.add_context_length, 1024),
    ):  # fmt: skip
        add(number)
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    cache = kv_cache_bytes(gguf_architecture(path), context=256, batch=1, dtype="fp16")

    assert cache == 3 * 256 * 4 * (96 + 32) * 2
