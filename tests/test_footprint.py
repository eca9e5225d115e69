"""Footprints against closed forms, transformers' own cache, torch's own memory events and llama.cpp's own log."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.models import MODELS
from quantbench.models.config import read_architecture
from quantbench.models.footprint import ELEMENT_BYTES, Weights, dense_bytes
from quantbench.planning.planner import largest_context
from quantbench.runtimes import RUNTIMES, llama_cpp
from quantbench.runtimes.transformers import activation_bytes, kv_cache_bytes

TOKENS = 160
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def test_weights_and_cache_of_a_published_model_are_its_closed_forms() -> None:
    model = read_architecture("llama-2-7b")
    parameters = 2 * 32000 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096
    assert model.parameters == parameters == 6_738_415_616
    assert dense_bytes(model, "fp16") - model.buffer_bytes == 2 * parameters
    assert kv_cache_bytes(model, context=4096, batch=3, dtype="fp16") == 3 * 2 * 32 * 32 * 128 * 4096 * 2


@pytest.mark.parametrize(("dtype", "share"), [("fp32", 2), ("fp8", 0.5), ("q8_0", 34 / 64), ("q4_0", 18 / 64)])
def test_the_cache_follows_its_dtype(dtype: str, share: float) -> None:
    model = read_architecture("llama-3.1-8b")
    half = kv_cache_bytes(model, context=1024, batch=1, dtype="fp16")
    assert kv_cache_bytes(model, context=1024, batch=1, dtype=dtype) == share * half


def test_block_formats_are_ggufs_own() -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for name in ("q8_0", "q4_0"):
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]]
        assert ELEMENT_BYTES[name] == pytest.approx(size / block)


def test_a_window_caps_the_cache_and_what_is_beyond_it_goes_after_the_prompt() -> None:
    model = read_architecture("mistral-7b")
    assert {layer.window for layer in model.layers} == {4096}
    a_position = 2 * 32 * 8 * 128 * 2
    short, long = (kv_cache_bytes(model, context=each, batch=1, dtype="bf16") for each in (4096, 6000))
    assert short == long == 4096 * a_position
    busy = [activation_bytes(model, context=each, batch=1, dtype="bf16") for each in (4096, 6000)]
    logits = 2 * 32000
    assert (busy[1] - logits) / 6000 - (busy[0] - logits) / 4096 == pytest.approx(1904 * a_position / 6000, rel=1e-6)


def test_llama_cpp_keeps_positions_in_multiples_of_256() -> None:
    model = read_architecture("llama-2-7b")
    sizes = [llama_cpp.kv_cache_bytes(model, context=each, batch=1, dtype="fp16") for each in (1, 256, 257)]
    assert sizes[0] == sizes[1] == sizes[2] / 2


@pytest.fixture(scope="module", params=sorted(DTYPES))
def prefilled(request: pytest.FixtureRequest) -> tuple[str, int, int]:
    """The canary's prompt pass: its dtype, the most bytes of tensors that lived at once, and those of its cache."""
    import torch
    from torch.profiler import ProfilerActivity, profile
    from transformers import AutoModelForCausalLM, DynamicCache

    dtype = getattr(torch, DTYPES[request.param])
    model = AutoModelForCausalLM.from_pretrained(MODELS["canary"].folder(), dtype=dtype).eval()
    cache: Any = DynamicCache(config=model.config)
    ids = torch.arange(3, 3 + TOKENS).unsqueeze(0)
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    lived = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            lived += event.nbytes()
            most = max(most, lived)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return request.param, most, kept


def test_the_cache_is_as_large_as_transformers_own(prefilled: tuple[str, int, int]) -> None:
    dtype, _, kept = prefilled
    canary = read_architecture("canary")
    assert kv_cache_bytes(canary, context=TOKENS, batch=1, dtype=dtype) == kept


def test_a_loaded_model_says_the_same_of_a_position_of_its_cache() -> None:
    from pathlib import Path

    from quantbench.core.job import Checkpoint
    from quantbench.methods import Settings
    from quantbench.runtimes.transformers.model import TransformersModel, load_pretrained

    checkpoint = Checkpoint(name="canary", kind="hf", path=Path(MODELS["canary"].folder()), revision="", content_hash="")
    model = load_pretrained(Settings(checkpoint=checkpoint, threads=1, context=0), "cpu", dtype="bfloat16")
    planned = kv_cache_bytes(read_architecture("canary"), context=1, batch=1, dtype="bf16")
    assert TransformersModel(model, "aten").memory().cache_position_bytes == planned


def test_activations_are_what_torch_says_lives_at_once(prefilled: tuple[str, int, int]) -> None:
    dtype, most, kept = prefilled
    planned = activation_bytes(read_architecture("canary"), context=TOKENS, batch=1, dtype=dtype)
    assert planned == pytest.approx(most - kept, rel=0.02)


LOAD = """
import ctypes, sys, llama_cpp as lib
log = lib.llama_log_callback(lambda level, text, data: sys.stdout.write(text.decode()))
lib.llama_log_set(log, ctypes.c_void_p(0))
model = lib.llama_model_load_from_file(sys.argv[1].encode(), lib.llama_model_default_params())
params = lib.llama_context_default_params()
params.n_ctx, params.n_batch = int(sys.argv[2]), 512
assert lib.llama_init_from_model(model, params)
"""


@pytest.mark.usefixtures("artifacts")
@pytest.mark.parametrize("context", [300, 1000])
def test_llama_cpp_allocates_what_is_planned(context: int) -> None:
    from quantbench.models.checkpoint import resolve
    from quantbench.runtimes.llama_cpp.files import f16_file

    path = f16_file(resolve("canary"))
    out = subprocess.run(
        [sys.executable, "-c", LOAD, str(path), str(context)], capture_output=True, text=True, check=True
    ).stdout
    said = {name: float(re.search(rf"{name} buffer size = +([\d.]+) MiB", out)[1]) for name in ("KV", "compute")}  # type: ignore[index]
    canary = read_architecture("canary")
    cache = llama_cpp.kv_cache_bytes(canary, context=context, batch=1, dtype="fp16")
    busy = llama_cpp.activation_bytes(canary, context=context, batch=1, dtype="fp16")
    assert cache / 2**20 == pytest.approx(said["KV"], abs=0.005)
    assert busy / 2**20 == pytest.approx(said["compute"], rel=0.15)


@given(
    budget=st.integers(min_value=1, max_value=40 * 10**9),
    batch=st.integers(min_value=1, max_value=8),
    loaded=st.integers(min_value=0, max_value=30 * 10**9),
)
def test_the_largest_context_fits_and_the_next_does_not(budget: int, batch: int, loaded: int) -> None:
    model = read_architecture("llama-2-7b")
    weights = Weights(weight_bytes=loaded, dtype="fp16")
    found = largest_context(model, weights, RUNTIMES["transformers"], budget, batch=batch, dtype="fp16")

    def needed(context: int) -> int:
        cache = kv_cache_bytes(model, context=context, batch=batch, dtype="fp16")
        return loaded + cache + activation_bytes(model, context=context, batch=batch, dtype="fp16")

    assert found is not None
    assert 0 <= found <= 4096
    assert found == 0 or needed(found) <= budget
    assert found == 4096 or needed(found + 1) > budget


def test_without_known_weights_no_context_is_said_to_fit() -> None:
    model, runtime = read_architecture("llama-2-7b"), RUNTIMES["transformers"]
    assert largest_context(model, Weights(weight_bytes=None), runtime, 10**12, batch=1, dtype="fp16") is None


@given(context=st.integers(min_value=1, max_value=4095), batch=st.integers(min_value=1, max_value=4))
def test_more_tokens_never_take_less(context: int, batch: int) -> None:
    model = read_architecture("mistral-7b")
    for runtime in RUNTIMES:
        for size in filter(None, (runtime.kv_cache_bytes, runtime.activation_bytes)):
            one = size(model, context=context, batch=batch, dtype="bf16")
            assert isinstance(one, int)
            assert one <= size(model, context=context + 1, batch=batch, dtype="bf16")
            assert math.isfinite(one)
