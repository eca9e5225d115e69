"""The importance matrix: what llama.cpp itself sees, by hand and in use, and where it is refused."""

from __future__ import annotations

import ctypes
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quantbench.core.errors import UnsupportedError, UsageError
from quantbench.core.job import Checkpoint
from quantbench.core.scenario import Conditions, Scenario, Spec, Variant
from quantbench.methods import METHODS, Settings
from quantbench.models.checkpoint import resolve
from quantbench.runtimes import open_tokenizer
from quantbench.runtimes.llama_cpp import imatrix
from quantbench.runtimes.llama_cpp.files import f16_file, has_matrix, quantized_file
from quantbench.runtimes.llama_cpp.imatrix import importance_matrix
from quantbench.runtimes.llama_cpp.model import library
from quantbench.runtimes.transformers.model import load_pretrained

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

LAYERS = 6
LENGTH = 256
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")

pytestmark = pytest.mark.usefixtures("artifacts")


def spec(precision: str, calibration: str, model: str = "canary") -> Spec:
    variant = Variant(method="gguf", precision=precision)
    return Spec(model=model, variant=variant, conditions=Conditions(calibration=calibration))


def settings(checkpoint: Checkpoint) -> Settings:
    return Settings(checkpoint=checkpoint, threads=1, context=LENGTH)


def read(path: Path) -> dict[str, NDArray[np.float32]]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture
def text(tmp_path: Path) -> str:
    """Enough of a text for eight sequences and little more."""
    path = tmp_path / "calibration.txt"
    path.write_text(Path(textwrap.__file__).read_text()[:12000])
    return str(path)


@pytest.fixture
def matrix(text: str) -> Path:
    return importance_matrix(spec("q2_k-imat", text), settings(resolve("canary")))


class GgmlTensor(ctypes.Structure):
    """ggml.h's struct ggml_tensor, up to its name."""


GgmlTensor._fields_ = [
    ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(GgmlTensor) * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
]  # fmt: skip


def seen_by_llama_cpp(path: Path, sequences: list[list[int]]) -> dict[str, NDArray[np.float64]]:
    """Mean squares of the inputs of every matrix multiplication, as llama.cpp's evaluation callback shows them."""
    lib = library()
    sums: dict[str, Any] = {}

    def collect(address: int, ask: bool, _: object) -> bool:
        node = GgmlTensor.from_address(address)
        weight = node.src[0].contents.name.decode() if node.src[0] else ""
        wanted = weight.startswith("blk.") and weight.endswith(".weight") and bool(node.src[1])
        if wanted and not ask:
            inputs = node.src[1].contents
            count = inputs.ne[0] * inputs.ne[1]
            values = np.ctypeslib.as_array((ctypes.c_float * count).from_address(inputs.data)).reshape(inputs.ne[1], -1)
            sums[weight] = sums.get(weight, 0) + np.square(values.astype(np.float64)).sum(axis=0)
        return wanted if ask else True

    callback = lib.ggml_backend_sched_eval_callback(collect)
    model_params = lib.llama_model_default_params()
    model_params.use_extra_bufts = False
    model = lib.llama_model_load_from_file(str(path).encode(), model_params)
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = LENGTH
    params.n_threads = params.n_threads_batch = 2
    params.cb_eval = callback
    context = lib.llama_init_from_model(model, params)
    for ids in sequences:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        batch = lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for position, token in enumerate(ids):
            batch.token[position], batch.pos[position], batch.n_seq_id[position] = token, position, 1
            batch.seq_id[position][0], batch.logits[position] = 0, True
        assert lib.llama_decode(context, batch) == 0
        lib.llama_batch_free(batch)
    lib.llama_free(context)
    lib.llama_model_free(model)
    return {name: total / sum(map(len, sequences)) for name, total in sums.items()}


def test_the_matrix_is_what_llama_cpp_sees(matrix: Path, text: str) -> None:
    """Every tensor and every column, on windows cut here from the same text."""
    from quantbench.runtimes.transformers.calibration import calibration_ids

    ours = read(matrix)
    checkpoint = resolve("canary")
    sequences = calibration_ids(spec("q2_k-imat", text), settings(checkpoint))
    ids = open_tokenizer(checkpoint).encode(Path(text).read_text())
    assert sequences[0] == ids[:LENGTH]
    assert {len(each) for each in sequences} == {LENGTH}

    theirs = seen_by_llama_cpp(f16_file(checkpoint), sequences)

    assert set(ours) == {f"blk.{layer}.{name}.weight" for layer in range(LAYERS) for name in MATRICES} == set(theirs)
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], rtol=0.005, err_msg=name)


def test_the_first_layers_inputs_by_hand() -> None:
    import torch

    model = load_pretrained(settings(resolve("canary")), "cpu", dtype="float32")
    sequences = [[1, *range(300, 331)], [1, *range(700, 731)]]
    name = "model.layers.0.self_attn.q_proj"

    found = imatrix.mean_squares(model, {name: "blk.0.attn_q.weight"}, sequences)

    weight = model.model.embed_tokens.weight.detach().double()
    norm = model.model.layers[0].input_layernorm
    rows = weight[torch.tensor(sequences).flatten()]
    normed = rows / (rows.square().mean(dim=1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.detach().double()
    np.testing.assert_allclose(found["blk.0.attn_q.weight"][1], normed.square().mean(dim=0).numpy(), rtol=1e-4)
    assert not model.model.layers[0].self_attn.q_proj._forward_pre_hooks


def test_quantizing_with_a_matrix_lowers_the_error_that_it_weighs(matrix: Path) -> None:
    """Sum over all matrices of importance x squared error, which is what the quantizer is told to minimise."""
    from gguf import GGUFReader, dequantize

    checkpoint = resolve("canary")
    importance = read(matrix)
    exact = {each.name: each for each in GGUFReader(f16_file(checkpoint)).tensors}

    def weighted_error(path: Path) -> float:
        total = 0.0
        for tensor in GGUFReader(path).tensors:
            if tensor.name in importance:
                error = dequantize(tensor.data, tensor.tensor_type) - exact[tensor.name].data.astype(np.float32)
                total += float((importance[tensor.name] * np.square(error, dtype=np.float64)).sum())
        return total

    plain, weighted = quantized_file(checkpoint, "q2_k"), quantized_file(checkpoint, "q2_k", matrix)

    assert weighted_error(weighted.path) < 0.95 * weighted_error(plain.path)
    assert has_matrix(weighted.path)
    assert not has_matrix(plain.path)


def test_plain_and_imatrix_files_are_different_variants_with_different_keys(text: str) -> None:
    recipe = METHODS["gguf"].recipe

    assert recipe(spec("q4_k_m", text)) == {}
    assert set(recipe(spec("q4_k_m-imat", text))) == set(recipe(spec("iq2_xxs", text))) == {"calibration"}
    sampled = recipe(spec("q4_k_m-imat", ""))
    assert sampled != recipe(spec("q4_k_m-imat", text))

    def key(precision: str) -> str:
        asked = spec(precision, text)
        scenario = Scenario(model="canary", variant=asked.variant, prompts="two", conditions=asked.conditions)
        return scenario.key({"model": "canary", **recipe(asked)})

    assert key("q4_k_m") != key("q4_k_m-imat")


def test_another_text_gives_another_file(text: str, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(Path(textwrap.__file__).read_text()[6000:18000])
    prepare = METHODS["gguf"].preparer
    assert prepare

    first, second = (prepare(spec("q4_0-imat", each), settings(resolve("canary"))) for each in (text, str(other)))

    assert first.path != second.path
    assert first.path.read_bytes() != second.path.read_bytes()
    assert first.quantize_s
    assert first.quantize_s > 0


def test_a_calibration_file_that_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match=r"calibration file nowhere\.txt does not exist"):
        importance_matrix(spec("iq2_xxs", "nowhere.txt"), settings(resolve("canary")))


@pytest.mark.parametrize("precision", ["iq2_xxs", "q4_k_m-imat"])
def test_a_gguf_file_has_no_model_to_compute_it_on(precision: str) -> None:
    ready = resolve(str(f16_file(resolve("canary"))))
    prepare = METHODS["gguf"].preparer
    assert prepare

    with pytest.raises(UnsupportedError, match=rf"gguf/{precision} needs an importance matrix.* is a GGUF file; give"):
        prepare(spec(precision, "", model="x.gguf"), settings(ready))


def test_columns_in_another_order_are_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As converters reorder them for some architectures: sizes agree, and each column would get another's weight."""
    import torch

    def reordered(*arguments: Any, **options: Any) -> Any:
        model = load_pretrained(*arguments, **options)
        weight = model.model.layers[3].mlp.down_proj.weight
        with torch.no_grad():
            weight.copy_(weight.flip(1))
        return model

    source = f16_file(resolve("canary"))
    monkeypatch.setattr(imatrix, "load_pretrained", reordered)
    monkeypatch.setattr(imatrix, "f16_file", lambda _: source)
    monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path / "empty"))  # or the matrix is there already

    with pytest.raises(UnsupportedError, match=r"importance matrix of blk\.3\.ffn_down\.weight cannot be computed"):
        importance_matrix(spec("iq2_xxs", text), settings(resolve("canary")))


def test_experts_have_no_matrix_but_their_own_type(small_checkpoint: Callable[..., Checkpoint], text: str) -> None:
    """In transformers 5 experts are in one tensor, whose inputs no module shows; MXFP4_MOE is made of them."""
    from gguf import GGUFReader

    checkpoint = small_checkpoint("mixtral", num_local_experts=8)
    assert json.loads((checkpoint.path / "config.json").read_text())["num_local_experts"] == 8

    kinds = {each.name: each.tensor_type.name for each in GGUFReader(quantized_file(checkpoint, "mxfp4_moe").path).tensors}
    assert kinds["blk.0.ffn_up_exps.weight"] == "MXFP4"
    assert kinds["blk.0.attn_q.weight"] == "Q8_0"
    with pytest.raises(UnsupportedError, match=r"importance matrix of blk\.0\.ffn_\w+_exps\.weight cannot be computed"):
        importance_matrix(spec("q4_k_m-imat", text, model=str(checkpoint.path)), settings(checkpoint))
