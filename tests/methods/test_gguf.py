"""Which types llama.cpp offers, and GGUF files that are odd: other shapes, cut short, split, already quantized."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from quantbench.core.errors import ModelError, UnsupportedError
from quantbench.core.job import Checkpoint
from quantbench.core.scenario import Spec, Variant
from quantbench.methods import METHODS, Artifact, Settings
from quantbench.methods.gguf import MAY_USE_MATRIX, NEED_MATRIX, TYPES
from quantbench.models.checkpoint import count_parameters, resolve
from quantbench.planning.planner import read_architecture
from quantbench.runtimes import open_tokenizer
from quantbench.runtimes.llama_cpp.files import (
    f16_file,
    file_precision,
    file_type,
    quantized_file,
    tensor_bytes,
)
from quantbench.runtimes.llama_cpp.model import library

pytestmark = pytest.mark.usefixtures("artifacts")


def settings(checkpoint: Checkpoint) -> Settings:
    return Settings(checkpoint=checkpoint, threads=1, context=64)


def spec(model: str, precision: str) -> Spec:
    return Spec(model=model, variant=Variant(method="gguf", precision=precision))


def prepared(asked: Spec, checkpoint: Checkpoint) -> Artifact:
    prepare = METHODS["gguf"].preparer
    assert prepare
    return prepare(asked, settings(checkpoint))


def llama_cpp_types() -> set[str]:
    prefixes = ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_")
    return {name.removeprefix(prefix) for name in dir(library()) for prefix in prefixes if name.startswith(prefix)}


def test_every_type_that_llama_cpp_makes_is_offered() -> None:
    """A type that llama.cpp adds or drops fails here; those left out are left out for a reason that still holds."""
    from gguf import GGMLQuantizationType

    assert llama_cpp_types() - set(TYPES) == {"NVFP4", "Q2_0"}
    assert set(TYPES) <= llama_cpp_types()
    assert "Q2_0" not in GGMLQuantizationType.__members__  # its bytes could not be counted
    with pytest.raises(ModelError, match="invalid output file type"):
        quantized_file(resolve("canary"), "nvfp4")


def test_names_titles_and_bits_are_llama_cpps() -> None:
    method = METHODS["gguf"]
    found = {each.name: (each.title, each.bits) for each in method.precisions}

    assert len(found) == len(method.precisions) == len(TYPES) + len(MAY_USE_MATRIX)
    for name, expected in {
        "q4_k_m": ("Q4_K_M", 4), "bf16": ("BF16", 16), "f32": ("F32", 32), "iq2_xxs": ("IQ2_XXS", 2), "tq1_0": ("TQ1_0", 1),
        "mxfp4_moe": ("MXFP4_MOE", 4), "q6_k-imat": ("Q6_K (imatrix)", 6),
    }.items():  # fmt: skip
        assert found[name] == expected
    assert all(name.islower() for name in found)


@pytest.mark.parametrize("precision", sorted(NEED_MATRIX))
def test_llama_cpp_refuses_these_without_an_importance_matrix(precision: str) -> None:
    """That it makes all others without one is what the contract's byte counts show."""
    with pytest.raises(ModelError, match="requires an imatrix"):
        quantized_file(resolve("canary"), precision)


@pytest.mark.parametrize("precision", ["f32", "bf16", "f16"])
def test_unquantized_files_hold_the_checkpoints_own_weights(precision: str) -> None:
    """The canary is stored in bf16, so only F16 can lose anything; nothing was quantized, so that took no time."""
    from gguf import dequantize
    from safetensors.torch import load_file

    canary = resolve("canary")
    artifact = prepared(spec("canary", precision), canary)
    expected = load_file(canary.path / "model.safetensors")["model.layers.2.mlp.up_proj.weight"].float().numpy()
    (tensor,) = (each for each in GGUFReader(artifact.path).tensors if each.name == "blk.2.ffn_up.weight")

    assert (file_precision(artifact.path), tensor.tensor_type.name.lower()) == (precision, precision)
    if precision == "f16":
        expected = expected.astype(np.float16)
    np.testing.assert_array_equal(dequantize(tensor.data, tensor.tensor_type), expected)
    assert artifact.quantize_s is None


def test_experts_are_needed_for_mxfp4_moe() -> None:
    with pytest.raises(UnsupportedError, match=r"mxfp4_moe is for experts .* has none, so it would be Q8_0; ask for gguf/q8_0"):
        prepared(spec("canary", "mxfp4_moe"), resolve("canary"))


def test_a_ready_file_is_used_as_it_is() -> None:
    made = quantized_file(resolve("canary"), "q8_0").path

    artifact = prepared(spec(str(made), "q8_0"), resolve(str(made)))

    assert artifact.path == made
    assert artifact.quantize_s is None
    assert file_precision(made) == "q8_0"


def test_a_quantized_file_is_not_quantized_again() -> None:
    made = quantized_file(resolve("canary"), "q8_0").path

    with pytest.raises(UnsupportedError, match=r"is already quantized to q8_0; use gguf/q8_0, or give an F16 file"):
        prepared(spec(str(made), "q4_k_m"), resolve(str(made)))


def test_a_ready_file_without_an_importance_matrix_is_no_imatrix_variant() -> None:
    made = quantized_file(resolve("canary"), "q4_0").path

    with pytest.raises(UnsupportedError, match=r"does not say that it was made with an importance matrix; use gguf/q4_0"):
        prepared(spec(str(made), "q4_0-imat"), resolve(str(made)))


def test_a_type_that_the_reader_does_not_know_is_not_called_damage(tmp_path: Path) -> None:
    newer = tmp_path / "newer.gguf"
    params = library().llama_model_quantize_default_params()
    params.ftype = file_type("q2_0")
    source = f16_file(resolve("canary"))
    assert library().llama_model_quantize(str(source).encode(), str(newer).encode(), params) == 0

    with pytest.raises(ModelError, match=r"newer\.gguf has tensors of a type that the installed gguf does not know"):
        tensor_bytes(newer)


def test_an_f16_file_can_be_quantized() -> None:
    source = resolve(str(f16_file(resolve("canary"))))

    artifact = prepared(spec("x.gguf", "q4_k_m"), source)

    assert file_precision(artifact.path) == "q4_k_m"
    assert tensor_bytes(artifact.path) == tensor_bytes(quantized_file(resolve("canary"), "q4_k_m").path)


def test_a_file_cut_short_is_one_sentence(tmp_path: Path) -> None:
    whole = quantized_file(resolve("canary"), "q8_0").path.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ModelError, match=r"cut\.gguf is cut short or damaged; make or download it again"):
        prepared(spec(str(cut), "q8_0"), resolve(str(cut)))


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory, users_cache: Path) -> Path:
    """The canary's F16 file in parts, by gguf's own writer; the first part."""
    from gguf import GGUFValueType, GGUFWriter

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTBENCH_CACHE", str(users_cache))
        reader = GGUFReader(f16_file(resolve("canary")))
    folder = tmp_path_factory.mktemp("split")
    writer = GGUFWriter(folder / "canary-f16.gguf", "llama", split_max_tensors=20)
    for name, entry in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = entry.types[-1] if entry.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, entry.contents(), entry.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "canary-f16-00001-of-00003.gguf"


def test_all_parts_of_a_split_file_count(split: Path) -> None:
    whole = f16_file(resolve("canary"))
    checkpoint = resolve(str(split))
    artifact = prepared(spec(str(split), "f16"), checkpoint)

    assert len(list(split.parent.iterdir())) == 3
    assert artifact.path == split
    assert artifact.file_bytes == sum(path.stat().st_size for path in split.parent.iterdir())
    assert tensor_bytes(split) == tensor_bytes(whole)
    assert count_parameters(checkpoint) == count_parameters(resolve(str(whole)))
    assert open_tokenizer(checkpoint).encode("Hello world") == open_tokenizer(resolve("canary")).encode("Hello world")
    prompt = [1, 300, 400]
    answers = []
    for path in (split, whole):
        with METHODS["gguf"].open(spec(str(path), "f16"), settings(resolve(str(path)))) as model:
            answers.append((model.memory().weight_bytes, list(model.generate(prompt, 8))))
    assert answers[0] == answers[1]


def test_a_split_file_can_be_quantized_and_saved(split: Path, tmp_path: Path) -> None:
    save = METHODS["gguf"].saver
    assert save
    quantized = prepared(spec(str(split), "q8_0"), resolve(str(split)))
    assert tensor_bytes(quantized.path) == tensor_bytes(quantized_file(resolve("canary"), "q8_0").path)

    save(spec(str(split), "f16"), settings(resolve(str(split))), tmp_path)

    names = [f"model-f16-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.glob("*.gguf")) == names
    assert tensor_bytes(resolve(str(tmp_path / names[0])).path) == tensor_bytes(split)


def test_a_part_of_a_split_file_is_not_taken_for_the_whole(split: Path, tmp_path: Path) -> None:
    second = split.with_name("canary-f16-00002-of-00003.gguf")
    with pytest.raises(ModelError, match=r"later part of a split .* give the first one, canary-f16-00001-of-00003\.gguf"):
        resolve(str(second))
    shutil.copy(split, tmp_path)
    shutil.copy(second, tmp_path)
    with pytest.raises(ModelError, match=r"part canary-f16-00003-of-00003\.gguf is missing; download or copy it again"):
        resolve(str(tmp_path / split.name))


@pytest.fixture(scope="module", name="odd")
def _odd(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A Llama whose rows, of 96 and 160, are multiples of 32 and not of 128 or 256."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("odd")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=96, intermediate_size=160, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for path in resolve("canary").path.glob("tokenizer*"):
        shutil.copy(path, folder)
    return resolve(str(folder))


@pytest.mark.parametrize(
    ("precision", "types"),
    [
        ("q4_k_m", {"Q5_0", "Q8_0"}), ("q5_k_m", {"Q5_1", "Q8_0"}), ("q6_k", {"Q8_0"}), ("q2_k", {"Q4_0", "Q5_0", "Q8_0"}),
        ("iq4_xs", {"IQ4_NL", "Q5_1", "Q8_0"}), ("tq1_0", {"Q4_0", "Q5_0", "Q8_0"}),
    ],
)  # fmt: skip
def test_rows_that_do_not_fill_blocks_get_the_types_of_llama_cpps_table(
    odd: Checkpoint, precision: str, types: set[str]
) -> None:
    """Held to the fallbacks in llama-quant.cpp; plan, facts and file agree in bytes and counts."""
    made = quantized_file(odd, precision)
    matrices = [each for each in GGUFReader(made.path).tensors if len(each.shape) > 1]
    planned = METHODS["gguf"].forecaster(read_architecture(str(odd.path)), [precision])[precision]  # type: ignore[misc]

    assert {each.tensor_type.name for each in matrices} <= types
    fallen = [each for each in matrices if each.name != "output.weight"]  # for that the recipe itself says Q8_0 at such rows
    size = sum(int(each.n_bytes) for each in fallen)
    assert made.facts == {"fallback_tensors": str(len(fallen)), "fallback_bytes": str(size)}
    assert planned.weight_bytes == tensor_bytes(made.path)
    assert f"{len(fallen)} of {len(GGUFReader(made.path).tensors)} tensors" in planned.note


def test_types_that_fill_blocks_fall_back_nowhere(odd: Checkpoint) -> None:
    for precision in ("f16", "q8_0"):
        assert quantized_file(odd, precision).facts == {"fallback_tensors": "0", "fallback_bytes": "0"}


def test_what_llama_cpp_knows_no_fallback_for_has_its_reason(odd: Checkpoint) -> None:
    with pytest.raises(
        UnsupportedError, match=r"cannot make q1_0 at this model's row sizes \(.*no tensor type fallback is defined"
    ):
        quantized_file(odd, "q1_0")
