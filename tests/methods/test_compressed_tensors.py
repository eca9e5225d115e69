"""compressed-tensors: files that its own compressors write from the canary load to the bytes foretold and the values stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quantbench import load
from quantbench.core.errors import ModelError, UnsupportedError
from quantbench.core.machine import describe
from quantbench.core.scenario import PROFILES, Conditions, Scenario, Spec, Variant
from quantbench.measuring.passes.similarity import log_softmax
from quantbench.methods import METHODS, Settings, Untimed
from quantbench.models.checkpoint import count_parameters, resolve
from quantbench.models.config import read_architecture
from quantbench.planning import planner
from quantbench.planning.options import Plan
from quantbench.planning.published import artifact_variant
from quantbench.planning.settled import settled
from quantbench.results.store import Run, Store
from quantbench.running.runner import Runner
from quantbench.runtimes.transformers import compressed_tensors as loading

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from quantbench.methods import LoadedModel

METHOD = METHODS["compressed-tensors"]
OFFERED = [each.name for each in METHOD.precisions]
PRESETS = {
    "w4a16-g128": "W4A16", "w8a16-g128": "W8A16", "w8a8": "W8A8", "fp8": "FP8", "fp8-dynamic": "FP8_DYNAMIC",
    "fp8-block": "FP8_BLOCK", "nvfp4": "NVFP4", "nvfp4a16": "NVFP4A16", "mxfp4": "MXFP4", "mxfp4a16": "MXFP4A16",
}  # fmt: skip
"""What compressed-tensors itself calls these schemes."""

CANARY_PARAMETERS = 5_770_496
EFFORT = replace(PROFILES["quick"], energy=False, besides=False)
MOST_KLD = {"w8": 2e-3, "w4": 0.2, "fp": 0.05, "nv": 0.3, "mx": 0.5}
TOKENS = [1, *range(300, 364)]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
LLAMA = {"hidden_size": 96, "intermediate_size": 224, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24}
SMALL: Mapping[str, Mapping[str, Any]] = {
    "llama": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "qwen2": {**LLAMA, "tie_word_embeddings": True},
    "gemma": LLAMA,
}
"""Biases, tied embeddings, a buffer in the model's dtype; rows that no group of 128 divides."""

pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed; tox -e tests installs it")


def scheme_of(name: str) -> Any:
    """The scheme of a precision in compressed-tensors' own words."""
    from compressed_tensors.quantization import preset_name_to_scheme

    if name in PRESETS:
        return preset_name_to_scheme(PRESETS[name], ["Linear"])
    bits, _, group = name.partition("a16")
    scheme = preset_name_to_scheme(f"{bits.upper()}A16", ["Linear"])
    if group:
        scheme.weights.group_size = int(group.removeprefix("-g"))
    else:
        scheme.weights.strategy, scheme.weights.group_size = "channel", None
    return scheme


def minmax(weight: Any, args: Any) -> tuple[Any, Any, Any]:
    """Scale, zero point and global scale of a weight by its extremes, from the package's own arithmetic."""
    import torch
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    weight = weight.float()
    overall = generate_gparam(weight.min(), weight.max()) if args.strategy == "tensor_group" else None
    match args.strategy:
        case "tensor":
            low, high = weight.min().reshape(1), weight.max().reshape(1)
        case "channel":
            low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        case "block":
            rows, columns = args.block_structure
            padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % columns, 0, -weight.shape[0] % rows))
            blocks = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
            low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
        case _:
            groups = weight.unflatten(1, (-1, args.group_size))
            low, high = groups.amin(2), groups.amax(2)
    return (*calculate_qparams(low, high, args, global_scale=overall), overall)


def inputs_of(model: Any) -> dict[str, tuple[Any, Any]]:
    """The extremes of what each Linear layer reads on a few tokens."""
    import torch

    seen: dict[str, tuple[Any, Any]] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, read, name=name: seen.update({name: (read[0].min(), read[0].max())}))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.inference_mode():
        model(torch.tensor([[each % model.config.vocab_size for each in TOKENS]]))
    for handle in handles:
        handle.remove()
    return seen


def publish(source: Path, folder: Path, name: str, ignore: tuple[str, ...] = ("lm_head",), **changes: object) -> Path:
    """A checkpoint of a precision as compressed-tensors writes it: extremes for scales, nothing calibrated."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    read, scheme = inputs_of(model), scheme_of(name)
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=list(ignore))
    apply_quantization_config(model, config, show_progress=False)
    for path, module in model.named_modules():
        if not hasattr(module, "quantization_scheme"):
            continue
        scale, zero, overall = minmax(module.weight.data, scheme.weights)
        low, high = (each.float().reshape(1) for each in read[path])
        values = {"weight_scale": scale, "weight_zero_point": zero, "weight_global_scale": overall}
        if hasattr(module, "input_scale"):
            values["input_scale"], values["input_zero_point"] = calculate_qparams(low, high, scheme.input_activations)
        if hasattr(module, "input_global_scale"):
            values["input_global_scale"] = generate_gparam(low, high)
        for key, value in values.items():
            if value is not None and hasattr(module, key):
                held = getattr(module, key)
                held.data = value.to(held.dtype).reshape(held.shape)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))
    for path in resolve("canary").path.glob("tokenizer*"):
        shutil.copy(path, folder)
    if changes:
        reconfigure(folder, **changes)
    return folder


def reconfigure(folder: Path, **changes: object) -> None:
    """Set keys of the quantization_config."""
    body = json.loads((folder / "config.json").read_text())
    body["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(body))


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The canary published in a precision, once for all tests."""

    @cache
    def make(name: str) -> Path:
        return publish(resolve("canary").path, tmp_path_factory.mktemp("published") / name, name)

    return make


def opened(name: str, folder: Path | str) -> AbstractContextManager[LoadedModel]:
    spec = Spec(model=str(folder), variant=Variant(method=METHOD.name, precision=name), conditions=Conditions())
    return METHOD.open(spec, Settings(checkpoint=resolve(str(folder)), threads=1, context=128))


@cache
def original() -> np.ndarray[Any, Any]:
    """The canary's own log-probabilities, in the dtype that all is published in."""
    spec = Spec(model="canary", variant=Variant(method="torch", precision="bf16"), conditions=Conditions())
    with METHODS["torch"].open(spec, Settings(checkpoint=resolve("canary"), threads=1, context=128)) as model:
        return scored(model)


def scored(model: LoadedModel) -> np.ndarray[Any, Any]:
    return log_softmax(np.concatenate([chunk.copy() for chunk in model.score(TOKENS)])).astype(np.float64)


def unpacked(tensors: Mapping[str, Any], stem: str, scheme: Any) -> np.ndarray[Any, Any]:
    """The weights that a layer's tensors stand for, by plain arithmetic."""
    stored = {key.removeprefix(stem): value for key, value in tensors.items() if key.startswith(stem)}
    scales = stored["weight_scale"].float().numpy()
    if "weight_shape" in stored:  # words of whole numbers, the lowest bits first, above an offset
        bits, words = scheme.weights.num_bits, stored["weight_packed"].numpy().view(np.uint32)
        fields = words[:, :, None] >> np.arange(0, 32, bits, dtype=np.uint32) & np.uint32(2**bits - 1)
        values = fields.reshape(len(words), -1)[:, : int(stored["weight_shape"][1])].astype(np.float32) - 2 ** (bits - 1)
    elif "weight_packed" in stored:
        pairs = stored["weight_packed"].numpy()
        values = E2M1[np.stack([pairs & 15, pairs >> 4], axis=2)].reshape(len(pairs), -1)
        overall = stored.get("weight_global_scale")
        scales = 2.0 ** (scales - 127) if overall is None else scales / overall.numpy()
    else:
        values = stored["weight"].float().numpy()
    if scales.ndim == 2:
        rows, columns = (-(-whole // part) for whole, part in zip(values.shape, scales.shape, strict=True))
        if scheme.weights.block_structure:
            rows, columns = scheme.weights.block_structure
        scales = scales.repeat(rows, 0).repeat(columns, 1)[: len(values), : values.shape[1]]
    return np.asarray(values * scales)


@pytest.mark.parametrize("name", OFFERED)
def test_bytes_are_those_foretold_and_values_those_stored(name: str, canary: Callable[[str], Path]) -> None:
    """Files and loaded weights to the byte; then the first forward decompresses, and what follows is close to the original."""
    from safetensors.torch import load_file

    folder = canary(name)
    (found,) = planner.forecast(read_architecture(str(folder)), METHOD.name, [name]).values()
    usual = planner.forecast(read_architecture("canary"), METHOD.name, [name])[name]
    assert found.file_bytes == usual.file_bytes == (folder / "model.safetensors").stat().st_size
    assert count_parameters(resolve(str(folder))) == CANARY_PARAMETERS
    with opened(name, folder) as model:
        packed = model.memory().weight_bytes
        assert packed == found.weight_bytes == usual.weight_bytes
        kld = (np.exp(original()) * (original() - scored(model))).sum(axis=1).mean()
        assert 0 < kld < MOST_KLD[name[:2]]
        assert model.memory().weight_bytes > 2 * CANARY_PARAMETERS > packed
        tensors = load_file(folder / "model.safetensors")
        layers = [key.removesuffix("weight_scale") for key in tensors if key.endswith(".weight_scale")]
        assert len(layers) == 42
        held = dict(model.model.named_parameters())  # type: ignore[attr-defined]
        for stem in layers:
            expected = unpacked(tensors, stem, scheme_of(name))
            np.testing.assert_allclose(held[f"{stem}weight"].float().numpy(), expected, rtol=2**-7, atol=1e-9)
        assert isinstance(model, Untimed)
        assert model.untimed.startswith(f"transformers has no kernel for {name} on the CPU: it runs decompressed to bfloat16")
        assert model.facts["kernel"].endswith("-quantized-decompressed")
        assert "weight_bytes is as loaded" in model.facts["note"]


@pytest.mark.parametrize("name", ["w4a16-g32", "fp8", "nvfp4", "w8a8"])
@pytest.mark.parametrize("family", SMALL)
def test_other_families_load_to_the_bytes_foretold(
    family: str, name: str, tmp_path: Path, small_checkpoint: Callable[..., Any]
) -> None:
    source = small_checkpoint(family, **SMALL[family])
    folder = publish(source.path, tmp_path / "published", name)
    (found,) = planner.forecast(read_architecture(str(folder)), METHOD.name, [name]).values()
    assert found.file_bytes == (folder / "model.safetensors").stat().st_size
    assert count_parameters(resolve(str(folder))) == count_parameters(source)
    with opened(name, folder) as model:
        assert model.memory().weight_bytes == found.weight_bytes
        assert len(list(model.generate([1, 5, 9], 3))) == 3


@pytest.mark.parametrize("ignore", [(), ("re:.*mlp.*", "lm_head"), ("model.layers.1.self_attn.q_proj",)])
def test_what_a_checkpoint_leaves_as_it_is_is_counted_so(ignore: tuple[str, ...], tmp_path: Path) -> None:
    folder = publish(resolve("canary").path, tmp_path / "published", "w8a8", ignore)
    (found,) = planner.forecast(read_architecture(str(folder)), METHOD.name, ["w8a8"]).values()
    assert found.file_bytes == (folder / "model.safetensors").stat().st_size
    with opened("w8a8", folder) as model:
        assert model.memory().weight_bytes == found.weight_bytes


def test_names_are_those_of_the_packages_own_schemes() -> None:
    assert METHOD.holder
    for name in OFFERED:
        group = json.loads(scheme_of(name).model_dump_json())
        assert METHOD.holder({"config_groups": {"group_0": group}, "quant_method": METHOD.name}) == [name]


def test_activations_are_quantized_too_where_the_name_says_so(canary: Callable[[str], Path]) -> None:
    """The same codes with and without 8-bit activations: the weights are equal and what comes out is not."""
    for both, weights_only in (("nvfp4", "nvfp4a16"), ("mxfp4", "mxfp4a16")):
        with opened(both, canary(both)) as first, opened(weights_only, canary(weights_only)) as second:
            apart = np.abs(scored(first) - scored(second)).max()
            ours, theirs = (dict(each.model.named_parameters()) for each in (first, second))  # type: ignore[attr-defined]
        assert apart > 0.05
        assert (ours["model.layers.0.mlp.up_proj.weight"] == theirs["model.layers.0.mlp.up_proj.weight"]).all()


def test_an_older_checkpoint_loads_as_one_of_today(canary: Callable[[str], Path], tmp_path: Path) -> None:
    """Its format was named once for all groups, and the state left behind was another."""
    folder = Path(shutil.copytree(canary("w8a8"), tmp_path / "older"))
    groups = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]
    for group in groups.values():
        group["format"] = None
    reconfigure(folder, config_groups=groups, quantization_status="frozen")
    with opened("w8a8", folder) as model, opened("w8a8", canary("w8a8")) as today:
        assert model.memory().weight_bytes == today.memory().weight_bytes
        np.testing.assert_array_equal(scored(model), scored(today))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "marlin-24"}, "its format 'marlin-24' is not read here; give one in pack-quantized, int-quantized"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, r"its weights are stored sparse \(sparse-24-bitmask\)"),
        ({"kv_cache_scheme": {"num_bits": 8, "type": "float"}}, r"it quantizes keys and values too \(kv_cache_scheme\)"),
        ({"transform_config": {"config_groups": {}}}, r"it rotates activations \(transform_config\)"),
        ({"ignore": ["re:(\\w+)+!"]}, r"its pattern 're:\(.*' for names of layers may take forever to match"),
        ({"ignore": ["lm_head", "re:" + ".*" * 9 + "!"]}, "may take forever to match; give one with simpler patterns"),
        ({"ignore": ["re:("]}, "may take forever to match"),
        ({"config_groups": {"a": {"weights": {"num_bits": 5}}}}, "its layers do not all have one of the schemes w4a16-g128,"),
        ({"config_groups": None}, "its layers do not all have one of the schemes"),
        ({"config_groups": {"W8A8": ["Linear"]}}, "its layers do not all have one of the schemes"),
    ],
)
def test_what_is_not_measured_says_so_in_one_sentence(
    changes: Mapping[str, object], reason: str, canary: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(canary("w8a8"), tmp_path / "odd"))
    groups = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]
    groups["group_0"]["format"] = None
    reconfigure(folder, **{"config_groups": groups, **changes})
    with pytest.raises(UnsupportedError, match=rf"odd cannot be measured as compressed-tensors: .*{reason}"):
        opened("w8a8", folder).__enter__()
    (found,) = planner.forecast(read_architecture(str(folder)), METHOD.name, ["w8a8"]).values()
    assert found.weight_bytes is None


def test_another_precision_than_it_is_names_what_it_is(canary: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedError, match="is compressed-tensors/w8a8 and compressed-tensors/fp8 was asked for"):
        opened("fp8", canary("w8a8")).__enter__()
    (found,) = planner.forecast(read_architecture(str(canary("w8a8"))), METHOD.name, ["fp8"]).values()
    assert (found.weight_bytes, found.note) == (None, "the checkpoint is compressed-tensors/w8a8")


def test_an_unquantized_checkpoint_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="opens only what was published quantized, and canary is not"):
        opened("w8a8", "canary").__enter__()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"ignore": ["lm_head", "model.layers.0.mlp.up_proj"]}, r"made 41 quantized layers and .* holds 42 \(model\.layers"),
        ({"ignore": []}, r"made 43 quantized layers and .* holds 42 \(lm_head only by its config.json\)"),
    ],
)
def test_a_configuration_that_the_files_contradict_is_an_error(
    damage: Mapping[str, object], reason: str, canary: Callable[[str], Path], tmp_path: Path
) -> None:
    """Such layers would hold random weights."""
    folder = Path(shutil.copytree(canary("w8a8"), tmp_path / "odd"))
    reconfigure(folder, **damage)
    with pytest.raises(ModelError, match=reason):
        opened("w8a8", folder).__enter__()


def test_arguments_that_the_package_has_dropped_are_named(canary: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(canary("w4a16-g128"), tmp_path / "odd"))
    groups = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]
    groups["group_0"]["weights"]["actorder"] = "group"
    reconfigure(folder, config_groups=groups)
    with pytest.raises(ModelError, match=r"cannot read the quantization_config of .*odd \(.*actorder='group' has been removed"):
        opened("w4a16-g128", folder).__enter__()


def test_only_what_a_checkpoint_is_is_planned(canary: Callable[[str], Path]) -> None:
    found = settled(str(canary("nvfp4")))
    assert found
    assert [each.name for each in found.variants] == ["compressed-tensors/nvfp4"]
    assert "to compare it with its original, use --model ORIGINAL --artifact NAME=" in found.sentence
    assert [each.name for each in planner.published(read_architecture(str(canary("nvfp4"))))] == ["compressed-tensors/nvfp4"]
    assert planner.published(read_architecture("canary")) == []


def test_a_row_has_bytes_and_answers_and_no_times(canary: Callable[[str], Path], tmp_path: Path) -> None:
    scenario = Scenario(
        model=str(canary("w4a16-g128")), variant=Variant(method=METHOD.name, precision="w4a16-g128"), prompts="two",
        conditions=Conditions(output_tokens=4, answer_tokens=4, continuation_tokens=8, threads=1),
    )  # fmt: skip
    run = Run(machine=describe(), versions={}, command="", commit="", profile="quick", engine="inline")
    plan = Plan(scenarios=(scenario,), effort=EFFORT, engine="inline")
    with Runner(plan, Store(str(tmp_path), run)) as runner:
        record = runner.measure(scenario)
    assert record.status == "ok", record.reason
    row = load(str(tmp_path)).iloc[0]
    size = (canary("w4a16-g128") / "model.safetensors").stat().st_size
    assert (row["artifact_bytes"], row["weight_bytes"]) == (size, row["predicted_weight_bytes"])
    assert row["weight_bytes_running"] > 2 * CANARY_PARAMETERS > row["weight_bytes"]
    assert row[["decode_tps", "prefill_tps", "ttft_s", "load_s", "decode_path"]].isna().all()
    assert "no kernel for w4a16-g128 on the CPU" in str(record.values["decode_tps"])


def test_as_an_artifact_it_is_as_far_off_as_its_weights_in_a_plain_checkpoint(
    canary: Callable[[str], Path], tmp_path: Path
) -> None:
    """Formats of weights alone, beside the row of torch with the same weights, of the original canary."""
    scenarios = {}
    for name in ("w4a16-g32", "w8a16-g128", "nvfp4a16", "mxfp4a16"):
        plain = _plain(name, canary(name), tmp_path / name)
        for kind, place in (("packed", canary(name)), ("plain", plain)):
            variant = artifact_variant(f"{kind}-{name}={place}")
            conditions = Conditions(output_tokens=4, answer_tokens=4, continuation_tokens=16, threads=1)
            scenarios[kind, name] = Scenario(model="canary", variant=variant, prompts="two", conditions=conditions)
    run = Run(machine=describe(), versions={}, command="", commit="", profile="quick", engine="inline")
    untimed = replace(EFFORT, untimed="other tests run beside this one")
    asked = Plan(scenarios=tuple(scenarios.values()), effort=untimed, engine="inline")
    with Runner(asked, Store(str(tmp_path / "results"), run)) as runner:
        found = {key: runner.measure(scenario) for key, scenario in scenarios.items()}
    assert {record.status for record in found.values()} == {"ok"}, [each.reason for each in found.values()]
    rows = load(str(tmp_path / "results")).set_index("scenario_id")
    for (kind, name), scenario in scenarios.items():
        row, other = rows.loc[scenario.id], rows.loc[scenarios["plain", name].id]
        assert (row["method"], row["precision"]) == ((METHOD.name, name) if kind == "packed" else ("torch", "bf16"))
        assert 0 < row["kld_mean"] == pytest.approx(other["kld_mean"], abs=1e-6), name


def _plain(name: str, folder: Path, out: Path) -> Path:
    """The decompressed weights as a checkpoint of bfloat16 that nothing quantized."""
    from safetensors.torch import load_file, save_file

    source = resolve("canary").path
    out.mkdir()
    for each in source.glob("*.json"):
        shutil.copy(each, out)
    config = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)
    (out / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    with opened(name, folder) as model:
        scored(model)  # the first forward decompresses
        held = model.model.state_dict()  # type: ignore[attr-defined]
        kept = {key: held[key].clone().contiguous() for key in load_file(source / "model.safetensors")}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize(("name", "taken"), [("fp8", True), ("fp8-dynamic", True), ("fp8-block", False), ("w8a8", False)])
@pytest.mark.parametrize("capability", [(8, 6), (9, 0)])
def test_only_fp8_has_a_kernel_and_only_on_newer_gpus(
    name: str, taken: bool, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert loading._may_have_kernel(name, "cuda") is (taken and capability == (9, 0))
    assert not loading._may_have_kernel(name, "cpu")


@pytest.mark.gpu
def test_fp8_on_a_gpu_runs_as_fp8_and_is_timed(canary: Callable[[str], Path]) -> None:
    import torch

    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no FP8")
    spec = Spec(
        model=str(canary("fp8-dynamic")), variant=Variant(method=METHOD.name, precision="fp8-dynamic"),
        conditions=Conditions(device="cuda"),
    )  # fmt: skip
    with METHOD.open(spec, Settings(checkpoint=resolve(spec.model), threads=1, context=128)) as model:
        assert isinstance(model, Untimed)
        assert (model.facts["kernel"], model.untimed) == ("CompressedTensorsFP8Linear", "")
        assert model.memory().weight_bytes < 2 * CANARY_PARAMETERS
        assert (np.exp(original()) * (original() - scored(model))).sum(axis=1).mean() < MOST_KLD["fp"]
        assert model.memory().weight_bytes < 2 * CANARY_PARAMETERS
