"""Plans: sums, ratios and what fits, on architectures whose sizes are closed forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from quantbench.core.errors import UsageError
from quantbench.core.gpus import Gpu
from quantbench.core.scenario import Variant
from quantbench.core.units import GIB
from quantbench.methods import METHODS
from quantbench.models.config import read_architecture
from quantbench.planning import planner
from quantbench.planning.matrix import every_variant
from quantbench.planning.planner import Device, Planned, Workload

PARAMETERS_7B = 6_738_415_616
HERE = (Device(name="small", memory_bytes=8 * GIB), Device(name="large", memory_bytes=24 * GIB))


def _plan(
    precisions: Sequence[str], devices: Sequence[Device] = HERE, model: str = "llama-2-7b", **asked: int
) -> list[Planned]:
    architecture = read_architecture(model)
    variants = [Variant(method="torch", precision=each) for each in precisions]
    return planner.plan(architecture, variants, planner.workload(architecture, **{"context": None, **asked}), devices)


def test_a_row_is_the_sum_of_its_parts() -> None:
    (row,) = _plan(["fp16"])
    assert row.weight_bytes == pytest.approx(2 * PARAMETERS_7B, rel=1e-6)
    assert row.kv_cache_bytes == 2 * 32 * 32 * 128 * 4096 * 2
    assert row.activation_bytes == 4096 * 2 * (2 * 128 + 4 * 4096 + 3 * 11008) + 2 * 32000
    assert row.peak_bytes == row.weight_bytes + row.kv_cache_bytes + row.activation_bytes
    assert row.bits_per_weight == pytest.approx(16, rel=1e-6)
    assert (row.compression_fp32, row.compression_fp16) == (pytest.approx(2, rel=1e-6), 1)
    assert row.arithmetic == "weights 13.5 GB + KV cache 2.15 GB + activations 407 MB"


def test_what_fits_is_told_of_each_device() -> None:
    fp32, fp16 = _plan(["fp32", "fp16"])
    assert (fp32.fits, fp32.fits_on, fp32.largest_context) == (False, {"small": False, "large": False}, 0)
    assert (fp16.fits, fp16.fits_on, fp16.largest_context) == (True, {"small": False, "large": True}, 4096)
    assert fp16.refusal(HERE[1]) == ""
    assert fp16.refusal(HERE[0]) == (f"torch/fp16 of llama-2-7b takes 16 GB ({fp16.arithmetic}) and small has 8.59 GB")


def test_without_a_device_nothing_is_said_to_fit() -> None:
    (row,) = _plan(["fp16"], devices=())
    assert (row.fits, row.fits_on, row.largest_context) == (None, {}, None)


def test_batch_and_context_multiply_the_cache_only() -> None:
    (one,), (more,) = _plan(["bf16"], context=1000), _plan(["bf16"], context=2000, batch=3)
    assert more.kv_cache_bytes == 6 * (one.kv_cache_bytes or 0)
    assert more.weight_bytes == one.weight_bytes


def test_the_usual_context_is_no_longer_than_the_model_was_made_for() -> None:
    assert planner.workload(read_architecture("canary"), context=None).context == 1024
    assert planner.workload(read_architecture("llama-3.1-8b"), context=None).context == planner.DEFAULT_CONTEXT


def test_a_longer_context_than_the_model_was_made_for_is_noted() -> None:
    (row,) = _plan(["fp16"], context=5000)
    assert "made for 4096 tokens and 5000 were asked for" in row.note


def test_a_dtype_of_the_cache_is_used_for_the_cache_alone() -> None:
    architecture = read_architecture("llama-2-7b")
    variant = [Variant(method="torch", precision="fp32")]
    rows = [planner.plan(architecture, variant, Workload(context=512, kv_dtype=each), ())[0] for each in ("", "fp8")]
    assert rows[0].kv_cache_bytes == 4 * (rows[1].kv_cache_bytes or 0)
    assert rows[0].activation_bytes == rows[1].activation_bytes


def test_a_gguf_file_is_planned_for_methods_that_open_one_alone(tmp_path: Path) -> None:
    architecture = replace(read_architecture("canary"), gguf=tmp_path / "a.gguf")
    for method in METHODS:
        if "gguf" in method.kinds:
            continue
        found = planner.forecast(architecture, method.name, [each.name for each in method.precisions])
        assert set(found) == {each.name for each in method.precisions}
        for weights in found.values():
            assert weights.weight_bytes is None
            assert weights.note.startswith(f"method {method.name!r} cannot open a .gguf file; give it a checkpoint folder")
    assert {each.name for each in METHODS if "gguf" in each.kinds} == {"gguf", "server"}


@pytest.mark.parametrize("name", ["context", "batch"])
def test_a_workload_beyond_all_models_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is above 1000000000000, which no model holds"):
        Workload(**{"context": 10, name: 10**330})


@pytest.mark.parametrize("asked", [{"context": 0}, {"context": -5}, {"batch": 0}, {"kv_dtype": "fp7"}])
def test_an_impossible_workload_is_refused(asked: dict[str, int | str]) -> None:
    name = next(iter(asked))
    with pytest.raises(UsageError, match="KV dtype 'fp7'" if name == "kv_dtype" else f"{name} is {asked[name]}; give a whole"):
        Workload(**{"context": 10, **asked})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gpus", "device", "expected"),
    [
        ((("A10", 24),), "cuda", Device(name="A10", memory_bytes=24 * GIB)),
        ((("A10", 24),), "cuda:0", Device(name="A10", memory_bytes=24 * GIB)),
        ((("A10", 24), ("A10", 24), ("T4", 16)), "cuda", Device(name="2 x A10 + T4", memory_bytes=64 * GIB)),
        ((("A10", 24), ("A10", 24), ("T4", 16)), "cuda:2", Device(name="T4", memory_bytes=16 * GIB)),
        ((("A10", 24), ("GB10", None)), "cuda", None),
        ((("A10", 24), ("GB10", None)), "cuda:1", None),
        ((("A10", 24), ("GB10", None)), "cuda:0", Device(name="A10", memory_bytes=24 * GIB)),
    ],
)
def test_a_model_may_be_spread_over_all_gpus_but_not_beyond_one_that_is_named(
    gpus: Sequence[tuple[str, int | None]], device: str, expected: Device | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tuple(
        Gpu(name=name, uuid=f"GPU-{number}", memory_bytes=size and size * GIB, driver="580")
        for number, (name, size) in enumerate(gpus)
    )
    monkeypatch.setattr("quantbench.core.gpus.visible_gpus", lambda: known)
    assert planner.device_here(device) == expected
    with pytest.raises(UsageError, match="'cuda:3' was requested, but the only GPUs are cuda:0"):
        planner.device_here("cuda:3")


def test_every_method_says_what_its_weights_take_or_why_not() -> None:
    rows = planner.plan(read_architecture("llama-2-7b"), every_variant((), ()), Workload(context=512), ())
    makers = [each for each in METHODS if not each.published]
    assert {row.variant for row in rows} == {f"{each.name}/{p.name}" for each in makers for p in each.precisions}
    assert [row.variant for row in rows if row.weight_bytes is None and not row.note] == []
    sized = {row.method for row in rows if row.weight_bytes}
    assert sized == {each.name for each in makers} - {"server"}


def test_variants_are_narrowed_by_name() -> None:
    assert [each.name for each in every_variant(["torch"], [])] == ["torch/fp32", "torch/fp16", "torch/bf16"]
    assert {each.method for each in every_variant([], ["int8"])} >= {"bitsandbytes", "torch-dynamic", "gptq"}
    with pytest.raises(UsageError, match="unknown precision 'q9'"):
        every_variant([], ["q9"])
    with pytest.raises(UsageError, match="none of the chosen methods has precision int8"):
        every_variant(["torch"], ["int8"])
