"""Published GGUF files beside their original: honest ones raise no alarm, and each known fault is found and named."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from quantbench.core.scenario import Conditions, Spec, Variant
from quantbench.methods import Settings
from quantbench.models.checkpoint import resolve
from quantbench.models.gguf import GgufHeader, maker
from quantbench.runtimes.llama_cpp.audit import WeightsAudit, audit_weights
from quantbench.runtimes.llama_cpp.conversion import conversion_mistakes
from quantbench.runtimes.llama_cpp.files import f16_file, file_type, quantized_file
from quantbench.runtimes.llama_cpp.imatrix import importance_matrix
from quantbench.runtimes.llama_cpp.mix import mix_of
from quantbench.runtimes.llama_cpp.model import library

FLOAT, INTEGER, TRUTH, TEXT = GGUFValueType.FLOAT32, GGUFValueType.UINT32, GGUFValueType.BOOL, GGUFValueType.STRING

QUERY = "blk.3.attn_q.weight"

pytestmark = pytest.mark.usefixtures("artifacts")


def original() -> Path:
    return f16_file(resolve("canary"))


def audit(path: Path, against: Path | None = None) -> WeightsAudit:
    """On few values, which is enough but for the finest errors and the whole of the tensors."""
    return audit_weights(path, against or original(), most=2**12)


def made(precision: str) -> Path:
    return quantized_file(resolve("canary"), precision).path


@pytest.fixture
def with_matrix(tmp_path: Path) -> Callable[[str], Path]:
    """Make a file with an importance matrix of the text that the tests of the matrix use too."""
    text = tmp_path / "calibration.txt"
    text.write_text(Path(textwrap.__file__).read_text()[:12000])
    asked = Spec(
        model="canary", variant=Variant(method="gguf", precision="q2_k-imat"), conditions=Conditions(calibration=str(text))
    )

    def make(precision: str) -> Path:
        canary = resolve("canary")
        matrix = importance_matrix(asked, Settings(checkpoint=canary, threads=1, context=256))
        return quantized_file(canary, precision, matrix).path

    return make


def rewritten(
    source: Path,
    target: Path,
    *,
    keys: Mapping[str, tuple[Any, GGUFValueType]] | None = None,
    without: tuple[str, ...] = (),
    tensors: Mapping[str, tuple[str, Path]] | None = None,
) -> Path:
    """A copy by gguf's own writer: other values of ``keys``, ``without`` some, ``tensors`` with the content of others."""
    keys, reader = keys or {}, GGUFReader(source)
    stored = {each.name: each for each in reader.tensors}
    for name, (other, path) in (tensors or {}).items():
        (stored[name],) = (each for each in GGUFReader(path).tensors if each.name == other)
    writer = GGUFWriter(target, "llama")
    for name, entry in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", *keys, *without):
            inner = entry.types[-1] if entry.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, entry.contents(), entry.types[0], inner)
    for name, (value, kind) in keys.items():
        writer.add_key_value(name, value, kind)
    for name, content in stored.items():
        if name not in without:
            writer.add_tensor(name, content.data, raw_dtype=content.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def requantized(source: Path, target: Path, precision: str) -> Path:
    """What llama-quantize makes of a quantized file with --allow-requantize."""
    params = library().llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = file_type(precision), True, 1
    assert library().llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0
    return target


CLEAN = ("q8_0", "q6_k", "q5_k_m", "q5_0", "q4_k_m", "q4_0", "iq4_xs", "q3_k_m", "q2_k")


@pytest.mark.parametrize("precision", CLEAN)
def test_what_llama_cpp_makes_of_the_original_is_not_accused(precision: str) -> None:
    path = made(precision)
    found = audit(path)

    assert found.findings == ()
    assert found.mix == f"llama.cpp's {precision}"
    assert found.error_ratio == pytest.approx(1.0, abs=1e-6)  # the same quantizer, on the same rows
    assert not found.matrix
    for source in (original(), resolve("canary").path, resolve("canary").path / "config.json"):
        assert conversion_mistakes(path, source) == ()


@pytest.mark.parametrize("precision", ["q4_k_m", "q2_k", "iq3_m", "q4_1"])
def test_an_importance_matrix_is_no_fault(precision: str, with_matrix: Callable[[str], Path]) -> None:
    found = audit(with_matrix(precision))

    assert found.findings == ()
    assert (found.mix, found.matrix) == (f"llama.cpp's {precision}", True)
    assert found.error_ratio
    assert 0.8 < found.error_ratio < 1.0  # without one, ggml weighs large weights more and so has the larger error


@pytest.mark.parametrize("precision", ["bf16", "f32", "f16"])
def test_unquantized_files_are_the_original_but_for_rounding(precision: str) -> None:
    found = audit(made(precision))

    assert found.findings == ()
    assert (found.mix, found.error, found.error_ratio) == (f"llama.cpp's {precision}", None, None)


def test_types_bits_and_maker_are_those_of_the_file(tmp_path: Path) -> None:
    keys = {"general.quantized_by": ("Some\x1b[31m One\nElse", TEXT), "general.organization": ("Org", TEXT)}
    path = rewritten(made("q4_k_m"), tmp_path / "x.gguf", keys=keys)
    tensors = GGUFReader(path).tensors
    found = audit(path)

    assert maker(GgufHeader(path)) == "Some [31m One Else"
    bits = 8 * sum(int(each.n_bytes) for each in tensors) / sum(int(each.n_elements) for each in tensors)
    assert found.bits_per_weight == pytest.approx(bits)
    for group in ("attn_q", "attn_v", "ffn_down"):
        kinds = [each.tensor_type.name.lower() for each in tensors if each.name.endswith(f"{group}.weight")]
        counts = {kind: kinds.count(kind) for kind in kinds}
        told = dict(each.split() for each in found.types[group].split(", ")) if len(counts) > 1 else {found.types[group]: "6"}
        assert told == {kind: str(count) for kind, count in counts.items()}
    assert found.types["output"] == "q6_k"


def test_the_error_is_that_of_all_weights() -> None:
    """Held to the whole tensors, dequantized by gguf: the canary's are no larger than what is compared, but for three kinds."""
    from gguf import dequantize

    exact = {each.name: each for each in GGUFReader(original()).tensors}
    errors = []
    for tensor in GGUFReader(made("q4_k_m")).tensors:
        if len(tensor.shape) > 1:
            wanted = exact[tensor.name].data.astype(np.float64)
            errors.append(np.linalg.norm(dequantize(tensor.data, tensor.tensor_type) - wanted) / np.linalg.norm(wanted))

    assert audit_weights(made("q4_k_m"), original()).error == pytest.approx(np.median(errors), rel=0.02)


def test_swapped_tensors_are_named(tmp_path: Path) -> None:
    first, second = "blk.1.attn_k.weight", "blk.2.attn_k.weight"
    tensors = {first: (second, made("q4_k_m")), second: (first, made("q4_k_m"))}
    path = rewritten(made("q4_k_m"), tmp_path / "x.gguf", tensors=tensors)

    assert audit(path).findings == (
        f"{first} is the original's {second}", f"{second} is the original's {first}",
    )  # fmt: skip


def test_swapped_norms_are_named(tmp_path: Path) -> None:
    first, second = "blk.1.ffn_norm.weight", "blk.2.ffn_norm.weight"
    path = rewritten(made("q2_k"), tmp_path / "x.gguf", tensors={first: (second, made("q2_k"))})

    assert audit(path).findings == (f"{first} is the original's {second}",)


def test_another_models_tensors_are_not_the_originals(tmp_path: Path) -> None:
    """A tensor of noise is nobody's; if most are, it is another model."""
    path = tmp_path / "x.gguf"
    shutil.copy(made("q8_0"), path)
    reader = GGUFReader(path, "r+")
    rng = np.random.default_rng(0)
    changed = [each for each in reader.tensors if each.name.endswith("ffn_up.weight")]
    for tensor in changed[:1]:
        tensor.data[:] = np.roll(tensor.data, 7, axis=0)
    reader.data.flush()
    (finding,) = audit(path).findings
    assert re.fullmatch(r"blk\.0\.ffn_up\.weight is not the original's: 1[34]\d % off", finding)

    for tensor in reader.tensors:
        tensor.data[:] = np.roll(tensor.data, 7, axis=0) if tensor.data.ndim > 1 else rng.permutation(tensor.data) + 1
    reader.data.flush()
    (finding,) = audit(path).findings
    assert finding == "57 of 57 tensors are not the original's: another model, or other rows"


@pytest.mark.parametrize(
    ("before", "precision", "least", "most"),
    [("q4_0", "q4_k_m", 1.3, 2**12), ("q8_0", "q4_k_m", 1.0, 2**16), ("q4_k_m", "q8_0", 5.0, 2**12)],
)
def test_quantizing_twice_is_found(before: str, precision: str, least: float, most: int, tmp_path: Path) -> None:
    path = requantized(made(before), tmp_path / "x.gguf", precision)
    (finding,) = audit_weights(path, original(), most=most).findings

    words = finding.split()
    assert finding.startswith("quantized twice: ")
    assert before.removesuffix("_m") in finding
    assert float(words[-4]) >= least


def test_quantizing_twice_is_found_behind_an_importance_matrix(with_matrix: Callable[[str], Path], tmp_path: Path) -> None:
    path = requantized(with_matrix("q4_0"), tmp_path / "x.gguf", "q4_k_m")

    (finding,) = audit(path).findings
    assert finding.startswith("quantized twice: ")
    assert "q4_0" in finding


def test_a_file_that_is_not_what_it_is_called_is_named(tmp_path: Path) -> None:
    wrong = tmp_path / "Canary-Q4_K_M.gguf"
    shutil.copy(made("q3_k_m"), wrong)
    assert mix_of(wrong).findings == ("called q4_k_m (file name), but its types are llama.cpp's q3_k_m",)
    assert audit(wrong).findings == mix_of(wrong).findings

    keys = {"general.file_type": (file_type("q4_k_m"), INTEGER)}
    for name, places in (("Canary-Q4_K_M.gguf", "file name, header"), ("Canary-Q3_K_M.gguf", "header"), ("x.gguf", "header")):
        path = rewritten(made("q3_k_m"), tmp_path / name, keys=keys)
        assert mix_of(path).findings == (f"called q4_k_m ({places}), but its types are llama.cpp's q3_k_m",)
        assert mix_of(path).about == "llama.cpp's q3_k_m"


@pytest.mark.parametrize(
    "name", ["canary.i1-q3_k_m.gguf", "Canary-Q3_K.gguf", "canary-f16-q3_k_m.gguf", "canary_Q4_K_L.gguf", "q8.gguf"]
)
def test_names_that_say_so_or_nothing_else_are_no_fault(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    shutil.copy(made("q3_k_m"), path)

    assert mix_of(path).findings == ()


@pytest.mark.parametrize("name", ["Canary-UD-Q4_K_XL.gguf", "Canary-Q4_K_M.gguf"])
def test_a_mix_of_ones_own_is_no_fault(name: str, tmp_path: Path) -> None:
    """One tensor of more bits than llama.cpp gives it."""
    path = rewritten(made("q4_k_m"), tmp_path / name, tensors={QUERY: (QUERY, made("q6_k"))})
    found = audit(path)

    assert found.findings == ()
    assert found.mix == f"a mix of its own: {found.bits_per_weight:.1f} bits a weight"
    assert found.types["attn_q"] == "q4_k 5, q6_k 1"


def test_far_fewer_bits_than_the_name_promises_are_a_fault(tmp_path: Path) -> None:
    path = rewritten(made("q2_k"), tmp_path / "Canary-Q4_K_M.gguf", tensors={QUERY: (QUERY, made("q6_k"))})
    (finding,) = mix_of(path).findings

    assert finding.startswith("called q4_k_m (file name): 3.")
    assert finding.endswith(" bits a weight, and llama.cpp's has 4.9")


@pytest.mark.parametrize(
    ("keys", "without", "mistake"),
    [
        ({"llama.rope.freq_base": (500000.0, FLOAT)}, (), "rope base 500,000; 10,000 in the original"),
        ({"llama.rope.scaling.type": ("linear", TEXT), "llama.rope.scaling.factor": (4.0, FLOAT)}, (),
         "rope scaling linear x4; none in the original"),
        ({"llama.rope.scaling.type": ("yarn", TEXT)}, (), "rope scaling yarn; none in the original"),
        ({"llama.context_length": (2048, INTEGER)}, (), "context length 2,048; 1,024 in the original"),
        ({"llama.attention.layer_norm_rms_epsilon": (1e-6, FLOAT)}, (), "RMS norm epsilon 1e-06; 1e-05 in the original"),
        ({"tokenizer.ggml.add_bos_token": (False, TRUTH)}, (), "puts no BOS in front of a text, and the original does"),
        ({}, ("output.weight",), "lacks output.weight, and the original's output is not tied"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_header_is_found_beside_a_folder_and_a_file(
    keys: Mapping[str, tuple[Any, GGUFValueType]], without: tuple[str, ...], mistake: str, tmp_path: Path
) -> None:
    path = rewritten(made("q4_k_m"), tmp_path / "x.gguf", keys=keys, without=without)

    assert conversion_mistakes(path, original()) == (mistake,)
    assert conversion_mistakes(path, resolve("canary").path) == (mistake,)
    assert len(mistake) < 80


def test_what_a_header_leaves_out_is_what_llama_cpp_takes(tmp_path: Path) -> None:
    """The canary's values are llama.cpp's defaults, so a header without them says the same."""
    defaults = ("llama.rope.freq_base", "tokenizer.ggml.add_bos_token", "llama.rope.scaling.type")
    path = rewritten(made("q4_k_m"), tmp_path / "x.gguf", without=defaults)

    assert conversion_mistakes(path, original()) == ()
    assert conversion_mistakes(path, resolve("canary").path) == ()


def folder(tmp_path: Path, **config: Any) -> Path:
    """The canary's folder with another config.json."""
    copy = tmp_path / "folder"
    shutil.copytree(resolve("canary").path, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    body = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**body, **config}))
    return copy


@pytest.mark.parametrize(
    ("config", "mistakes"),
    [
        ({"rope_parameters": None, "rope_theta": 1e6}, ("rope base 10,000; 1,000,000 in the original",)),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
         ("rope scaling none; linear x2 in the original",)),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0}},
         ("lacks rope_freqs.weight, the factors of the original's rope scaling",)),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "dynamic", "factor": 8.0}}, ()),
        ({"rope_parameters": None}, ()),
        ({"tie_word_embeddings": True}, ()),
        ({"max_position_embeddings": 4096}, ("context length 1,024; 4,096 in the original",)),
    ],
)  # fmt: skip
def test_older_and_newer_configurations_are_read(config: dict[str, Any], mistakes: tuple[str, ...], tmp_path: Path) -> None:
    assert conversion_mistakes(made("q8_0"), folder(tmp_path, **config)) == mistakes


def test_other_keys_of_two_files_are_compared(tmp_path: Path) -> None:
    path = rewritten(made("q4_k_m"), tmp_path / "x.gguf", keys={"llama.rope.dimension_count": (16, INTEGER)})

    assert conversion_mistakes(path, original()) == ("rope.dimension_count 16; 32 in the original",)


def test_tensors_of_one_file_only_are_told(tmp_path: Path) -> None:
    path = rewritten(made("q4_k_m"), tmp_path / "x.gguf", without=("blk.5.ffn_up.weight", "blk.5.ffn_norm.weight"))
    assert audit(path).findings[0] == "lacks blk.5.ffn_up.weight and 1 more"

    exact = rewritten(original(), tmp_path / "y.gguf", without=("blk.5.ffn_up.weight",))
    found = audit(made("q4_k_m"), exact)
    assert found.findings == ("has what the original has not: blk.5.ffn_up.weight",)
