"""One table of settings: each reaches the plan, and each nonsense gets one sentence."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.errors import UsageError
from quantbench.core.scenario import PROFILES, Conditions, at_batch
from quantbench.planning.options import OPTIONS, Option, RunOptions, convert, plan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from quantbench.core.scenario import Scenario
    from quantbench.planning.options import Plan

BY_NAME = {option.name: option for option in OPTIONS}


def _plan(**given: str | list[str] | bool) -> Plan:
    """The plan for raw option values, everything else at its default."""
    return plan(RunOptions.read(lambda option: given.get(option.key, option.default)))


def test_the_settings_of_the_design_are_there() -> None:
    assert {
        "model", "method", "precision", "prompts", "matrix", "reference", "results", "device", "engine", "profile", "timeout",
        "threads", "context", "seed",
    } <= set(BY_NAME)  # fmt: skip


def test_names_are_unique_and_every_setting_is_explained() -> None:
    assert len(BY_NAME) == len(OPTIONS)
    for option in OPTIONS:
        assert option.help, option.name
        assert option.key.isidentifier(), option.name
        assert bool(option.metavar) == (option.kind != "flag"), option.name


@given(st.lists(st.text("abcdef/-_.", min_size=1, max_size=6), max_size=5))
def test_a_list_may_be_repeated_or_separated_by_commas(names: list[str]) -> None:
    option = BY_NAME["method"]
    expected = tuple(names)
    assert convert(option, names) == expected
    assert convert(option, ",".join(names)) == expected
    assert convert(option, [" , ".join(names), ""]) == expected


@pytest.mark.parametrize("option", [each for each in OPTIONS if each.kind in ("int", "float", "text")], ids=str)
@pytest.mark.parametrize("raw", [None, ""])
def test_an_empty_value_means_not_given(option: Option, raw: str | None) -> None:
    usual = None if raw is None or option.default is None else convert(option, option.default)
    assert convert(option, raw) == usual


@pytest.mark.parametrize(
    ("raw", "expected"),
    [(True, True), (None, False), ("", False), ("true", True), ("On", True), ("1", True), ("no", False), ("0", False)],
)
def test_flags(raw: bool | str | None, expected: bool) -> None:
    assert convert(BY_NAME["trust-remote-code"], raw) is expected


def test_a_flag_in_an_ini_file_that_is_neither_yes_nor_no_is_refused() -> None:
    with pytest.raises(UsageError):
        convert(BY_NAME["trust-remote-code"], "perhaps")


@pytest.mark.parametrize(
    ("name", "raw"), [("threads", "two"), ("threads", "2.5"), ("context", "4k"), ("seed", "x"), ("timeout", "soon")]
)
def test_what_is_no_number_is_refused_by_the_options_name(name: str, raw: str) -> None:
    with pytest.raises(UsageError, match=rf"^--{name} '{raw}' is not a valid (int|float); give a number$"):
        convert(BY_NAME[name], raw)


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("reference", "torch/bf16", "torch/bf16"),
        ("device", "cuda:1", "cuda:1"),
        ("threads", "3", 3),
        ("context", "512", 512),
        ("answered_prompts", "3", 3),
        ("output_tokens", "8", 8),
        ("seed", "11", 11),
        ("calibration", "text.txt", "text.txt"),
        ("server", "gguf/q8_0", "gguf/q8_0"),
        ("concurrency", "2", 2),
        ("chunks", "3", 3),
        ("decode_path", "static", "static"),
        ("n_gpu_layers", "auto", "auto"),
    ],
)
def test_an_option_of_a_conditions_name_changes_that_condition_of_every_scenario(name: str, raw: str, expected: Any) -> None:
    needs = {"device": "cuda:0"} if name == "n_gpu_layers" else {}
    assert {getattr(scenario.conditions, name) for scenario in _plan(**{name: raw}, **needs).scenarios} == {expected}
    assert expected != getattr(Conditions(), name)


@pytest.mark.parametrize(
    ("options", "timed"),
    [
        ({}, 32), ({"device": "cpu"}, 32), ({"device": "cuda"}, 128), ({"device": "cuda:1"}, 128),
        ({"device": "cuda", "output_tokens": "32"}, 32), ({"device": "cuda", "output_tokens": "16"}, 16),
    ],
)  # fmt: skip
def test_more_tokens_are_timed_on_a_gpu_unless_somebody_sets_how_many(options: dict[str, str], timed: int) -> None:
    """Those compared stay as many: the first of the timed ones."""
    found = {(each.conditions.output_tokens, each.conditions.answer_tokens) for each in _plan(**options).scenarios}
    assert found == {(timed, 32)}


@pytest.mark.parametrize(("lines", "timed"), [("", 128), ("output_tokens = 32", 32), ("output_tokens = 9", 9)])
@pytest.mark.parametrize("where", ["file", "option"])
def test_a_matrix_file_that_sets_how_many_is_heeded(where: str, lines: str, timed: int, tmp_path: Path) -> None:
    """Also the usual number of the CPU, where the device is the file's and where it is an option's."""
    path = tmp_path / "matrix.toml"
    device = 'device = "cuda"' if where == "file" else ""
    path.write_text(f'models = ["canary"]\n[methods]\ntorch = ["bf16"]\n[conditions]\nseed = 1\n{device}\n{lines}\n')
    asked = {"matrix": str(path)} if where == "file" else {"matrix": str(path), "device": "cuda"}
    assert {each.conditions.output_tokens for each in _plan(**asked).scenarios} == {timed}
    assert {each.conditions.output_tokens for each in _plan(matrix=str(path), device="cpu").scenarios} == {
        32 if timed == 128 else timed
    }


@pytest.mark.parametrize(
    ("line", "options", "counted"),
    [
        ("", {}, True), ("", {"no_energy": True}, False), ("energy = false", {}, False),
        ("energy = true", {"no_energy": True}, False),
    ],
)  # fmt: skip
def test_energy_is_counted_unless_an_option_or_the_matrix_says_otherwise(
    line: str, options: dict[str, Any], counted: bool, tmp_path: Path
) -> None:
    path = tmp_path / "matrix.toml"
    path.write_text(f'models = ["canary"]\n{line}\n')
    assert _plan(matrix=str(path), **options).effort.energy is counted


def test_every_option_that_is_named_like_a_condition_is_tried_above() -> None:
    mark = test_an_option_of_a_conditions_name_changes_that_condition_of_every_scenario.pytestmark[0]
    tried = {name for name, _, _ in mark.args[1]}
    assert tried == {option.key for option in OPTIONS} & {each.name for each in fields(Conditions)}


def test_without_a_matrix_every_method_is_planned_on_the_canary() -> None:
    scenarios = _plan().scenarios
    assert {scenario.model for scenario in scenarios} == {"canary"}
    assert {"torch", "bitsandbytes", "gguf"} <= {scenario.variant.method for scenario in scenarios}
    assert sum(scenario.variant.control for scenario in scenarios) == 1


def test_axes_are_selected() -> None:
    chosen = _plan(model="org/model", method=["torch,gguf"], precision=["fp32", "q8_0"], prompts="two").scenarios
    assert [scenario.id for scenario in chosen] == [
        "org/model/torch-fp32/two",
        "org/model/torch-fp32-control/two",
        "org/model/gguf-q8_0/two",
    ]


def test_a_matrix_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[methods]\ngguf = ["q8_0"]\n')
    assert [scenario.id for scenario in _plan(matrix=str(path)).scenarios] == ["canary/gguf-q8_0/mixed"]


@pytest.mark.parametrize("name", list(PROFILES))
def test_profiles_are_the_effort(name: str) -> None:
    assert _plan(profile=name).effort == PROFILES[name]


def test_a_timeout_changes_only_the_timeout() -> None:
    effort = _plan(profile="quick", timeout="12.5").effort
    assert effort.timeout_s == 12.5
    assert effort.max_rounds == PROFILES["quick"].max_rounds


def test_the_rest_reaches_the_plan(tmp_path: Path) -> None:
    found = _plan(engine="inline", keep_jobs=str(tmp_path), trust_remote_code=True)
    assert (found.engine, found.keep_jobs, found.trust_remote_code) == ("inline", tmp_path, True)
    assert (_plan().engine, _plan().keep_jobs, _plan().trust_remote_code) == ("process", None, False)
    assert _plan(engine="ray", ray_address="auto").ray_address == "auto"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"profile": "quik"}, r"^unknown profile 'quik'; did you mean 'quick'\?$"),
        ({"profile": "fast"}, r"^unknown profile 'fast'; known: brief, default, quick, thorough$"),
        ({"model": "kanary"}, r"^unknown model 'kanary'; did you mean 'canary'\?$"),
        ({"method": "ggfu"}, r"^unknown method 'ggfu'; did you mean 'gguf'\?$"),
        ({"precision": "q4_k"}, r"^unknown precision 'q4_k'; did you mean"),
        ({"prompts": "tenn"}, r"^unknown prompt set 'tenn'; did you mean 'ten'"),
        ({"matrix": "none.toml"}, r"^matrix file .*none.toml does not exist"),
        ({"reference": "torch"}, r"^unknown precision of torch ''; known: bf16, fp16, fp32$"),
        ({"reference": "tocrh/fp32"}, r"^unknown method 'tocrh'; did you mean 'torch' or 'torchao'\?$"),
        ({"device": "gpu"}, r"^device 'gpu' is not known; use cpu, cuda or cuda:N$"),
        ({"output_tokens": "1"}, r"^output_tokens is 1; ask for at least 2 tokens"),
        ({"threads": "-1"}, r"^threads is -1; it cannot be negative$"),
        ({"timeout": "0"}, r"^--timeout 0 is not positive; give seconds$"),
        ({"timeout": "-3"}, r"^--timeout -3 is not positive; give seconds$"),
        ({"timeout": "nan"}, r"^--timeout nan is not positive; give seconds$"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        _plan(**given)


def _prompts(**given: str | list[str] | bool) -> list[str]:
    planned = (scenario for scenario in _plan(**given).scenarios if scenario.model == "canary")
    return list(dict.fromkeys(at_batch(scenario.prompts, scenario.batch) for scenario in planned))


def test_batches_multiply_the_prompt_sets() -> None:
    assert _prompts(prompts="ten,tokens:64", batch="1,8") == ["ten", "ten@8", "tokens:64", "tokens:64@8"]
    assert _prompts(prompts="ten") == ["ten"]


def test_a_text_and_inputs_of_a_module_are_never_batched(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("word " * 100)
    assert _prompts(prompts=f"ten,text:{text}", batch="4") == ["ten@4", f"text:{text}"]
    assert {scenario.prompts for scenario in _plan(model="lstm", batch="4").scenarios} == {"seeded"}


@pytest.mark.parametrize(
    ("prompts", "batch", "said"),
    [
        ("ten", "0", "not a number of sequences"),
        ("ten", "-2", "not a number of sequences"),
        ("ten", "many", "not a number of sequences"),
        ("ten@2", "4", "--batch 4 another"),
        ("ten", "4,4", "planned twice"),
        ("ten@0", "", "cannot be answered 0 at a time"),
    ],
)
def test_batches_that_cannot_be_are_refused(prompts: str, batch: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        _plan(prompts=prompts, batch=batch)


def _with_template(folder: Path) -> str:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    return str(folder)


def test_a_model_with_a_chat_template_is_asked_conversations_unless_prompts_are_named(tmp_path: Path) -> None:
    """Each model gets its own set, and what is named holds for all."""
    model = _with_template(tmp_path)
    matrix = tmp_path / "matrix.toml"
    matrix.write_text('prompts = ["two"]\n[methods]\ntorch = ["bf16"]\n')
    asked = {"model": f"canary,{model}", "method": "torch", "precision": "bf16"}
    assert [each.prompts for each in _plan(**asked).scenarios] == ["mixed", "chat"]
    assert [each.prompts for each in _plan(**asked, batch="1,4").scenarios] == ["mixed", "mixed", "chat", "chat"]
    assert [each.prompts for each in _plan(**asked, prompts="ten").scenarios] == ["ten", "ten"]
    assert [each.prompts for each in _plan(**asked, matrix=str(matrix)).scenarios] == ["two", "two"]
    (tmp_path / "tokenizer_config.json").write_text("{")
    assert [each.prompts for each in _plan(**asked).scenarios] == ["mixed", "mixed"]


def test_a_gguf_file_is_asked_conversations_by_its_header(tmp_path: Path) -> None:
    assert {each.prompts for each in _plan(model=_gguf(tmp_path / "odd.gguf", 15)).scenarios} == {"mixed"}
    assert {each.prompts for each in _plan(model=_gguf(tmp_path / "odd.gguf", 15, "{{ x }}")).scenarios} == {"chat"}


@pytest.mark.parametrize("model", ["org/model", "org/model:Q4_K_M", "dummy:org/model", "http://localhost:1/v1"])
def test_what_is_not_here_is_asked_plain_prompts_and_a_hub_model_says_so(model: str) -> None:
    """Also where the hub's cache has it: else the ids of a command's rows would change with the first download."""
    found = _plan(model=model, method="server", precision="as-served")
    assert {each.prompts for each in found.scenarios} == {"mixed"}
    said = [f"{model} gets the prompts mixed; if it is a chat model, add --prompts chat"]
    assert [each for each in found.hints if "mixed" in each] == (said if model.startswith("org/") else [])
    assert not any("mixed" in each for each in _plan(model=model, method="server", precision="as-served", prompts="ten").hints)


def _variants(scenarios: Sequence[Scenario]) -> set[str]:
    return {scenario.variant.name for scenario in scenarios}


def test_for_a_model_of_ones_own_what_takes_long_is_left_out_and_listed() -> None:
    found = _plan(model="org/model")
    assert _variants(found.scenarios) == {
        "torch/fp32", "torch/bf16", "torch-dynamic/int8", "gguf/q8_0", "gguf/q6_k", "gguf/q5_k_m", "gguf/q4_k_m", "gguf/q3_k_m",
    }  # fmt: skip
    assert not found.probed
    said = "; ".join(found.left_out)
    for each in ("gptq (calibrates)", "awq (calibrates)", "qat (trains)", "prune (", "gguf in ", "probes (--probes)"):
        assert each in said
    slow = "(slower than fp32 on a CPU)"
    assert {f"bitsandbytes {slow}", f"torchao {slow}", "torch fp16"} <= {*found.left_out}
    assert "bitsandbytes nf4-dq, fp4" in _plan(model="org/model", device="cuda").left_out
    on_gpu = _variants(_plan(model="org/model", device="cuda").scenarios)
    assert {"torch/fp16", "torchao/int8-wo", "bitsandbytes/nf4"} <= on_gpu


def _gguf(path: Path, file_type: int, template: str = "") -> str:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_file_type(file_type)
    if template:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return str(path)


def test_a_ready_gguf_file_is_planned_as_what_it_holds_and_says_how_it_is_compared(tmp_path: Path) -> None:
    """Of 26 scenarios 25 could only be skipped."""
    path = _gguf(tmp_path / "odd.gguf", 15)
    found = _plan(model=path, prompts="ten")

    assert [each.id for each in found.scenarios] == ["odd/gguf-q4_k_m/ten"]
    assert found.left_out == ("probes (--probes)",)
    (hint,) = found.hints
    assert hint.startswith(f"{path} holds gguf/q4_k_m")
    assert f"--model ORIGINAL --artifact NAME={path}" in hint
    assert "--model ORIGINAL --precision q4_k_m" in hint
    assert _variants(_plan(model=path, precision="q8_0").scenarios) == {"gguf/q8_0"}
    assert _variants(_plan(model=path, method="torch").scenarios) > {"torch/fp32", "torch/bf16"}
    assert _plan(model=path, precision="q8_0").hints == _plan(model="canary").hints == ()


def test_what_can_be_made_of_an_unquantized_gguf_file_is_offered(tmp_path: Path) -> None:
    path = _gguf(tmp_path / "odd.gguf", 32)
    found = _plan(model=path)

    assert _variants(found.scenarios) == {"gguf/bf16"}
    assert "add --reference gguf/bf16 --method gguf --precision bf16,q8_0,q4_k_m" in found.hints[0]
    asked = {"reference": "gguf/bf16", "method": "gguf", "precision": "bf16,q8_0,q4_k_m"}
    named = _plan(model=path, prompts="ten", **asked).scenarios
    assert [each.id.split("/")[1] for each in named] == ["gguf-bf16", "gguf-bf16-control", "gguf-q8_0", "gguf-q4_k_m"]


@pytest.mark.parametrize(
    ("model", "variants"),
    [("org/repo:Q5_K_M", {"gguf/q5_k_m"}), ("org/repo@main:BF16", {"gguf/bf16"}), ("org/repo:UD-Q4_K_XL", None)],
)
def test_a_file_on_the_hub_is_planned_as_the_type_that_its_name_ends_with(model: str, variants: set[str] | None) -> None:
    found = _variants(_plan(model=model).scenarios)
    assert found == variants or (variants is None and len(found) > 1)


def test_a_file_that_is_damaged_is_planned_like_any_model_and_its_rows_say_so(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(b"GGUF")
    assert "gguf/q8_0" in _variants(_plan(model=str(path)).scenarios)


W8A16 = {
    "quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"type": "int", "num_bits": 8, "group_size": 128}}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "quantization", "variants"),
    [
        ("config.json", {"quant_method": "gptq", "bits": 4, "group_size": 64}, {"gptq/int4-g64"}),
        ("config.json", {"quant_method": "awq", "bits": 4, "group_size": 128}, {"awq/int4-g128"}),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 32}, {"awq/int4-g32"}),
        ("config.json", {"quant_method": "torchao"}, {"torchao/int8-wo", "torchao/int4-wo"}),
        ("config.json", W8A16, {"compressed-tensors/w8a16-g128"}),
    ],
    ids=["gptq", "awq", "AutoAWQ's own file", "torchao", "compressed-tensors"],
)
def test_a_checkpoint_that_is_quantized_already_is_planned_for_what_opens_it(
    tmp_path: Path, name: str, quantization: dict[str, Any], variants: set[str]
) -> None:
    config: dict[str, Any] = {"model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    body = {**config, "quantization_config": quantization} if name == "config.json" else quantization
    (tmp_path / name).write_text(json.dumps(body))
    found = _plan(model=str(tmp_path))

    assert variants <= _variants(found.scenarios)
    assert {each.split("/")[0] for each in _variants(found.scenarios)} == {each.split("/")[0] for each in variants}
    assert "quantized already" in found.hints[0]
    assert "bitsandbytes" not in str(found.left_out)


def test_what_is_named_is_not_left_out() -> None:
    assert _variants(_plan(model="org/model", method="gptq").scenarios) == {"gptq/int8", "gptq/int4-g128"}
    assert "bitsandbytes/fp4" in _variants(_plan(model="org/model", precision="fp4").scenarios)
    named = _plan(model="org/model", method="gptq")
    assert named.left_out == ("probes (--probes)",)  # they take longer than the rows that were asked for
    assert not named.probed
    assert _plan(model="org/model", method="gptq", probes=True).probed
    assert _plan(model="org/model", probes=True).probed
    assert not _plan(no_probes=True).probed


def test_a_matrix_names_what_is_probed_unless_everything_or_nothing_is_asked_for(tmp_path: Path) -> None:
    matrix = tmp_path / "matrix.toml"
    matrix.write_text('probes = ["torch/bf16", "gguf/q8_0"]\n[methods]\ntorch = ["fp32", "bf16"]\n')
    assert _plan(matrix=str(matrix)).probed == {"torch/bf16"}
    assert _plan(matrix=str(matrix), probes=True).probed == {"torch/fp32", "torch/bf16"}
    assert _plan(matrix=str(matrix), no_probes=True).probed == set()


def test_a_built_in_model_has_every_method_and_its_probes() -> None:
    found = _plan(model="canary")
    assert found.probed == _variants(found.scenarios)
    assert found.left_out == ()
    assert {"gptq/int8", "prune/unstructured-50"} <= _variants(found.scenarios)


@pytest.mark.parametrize(
    ("models", "costs"), [('models = ["canary"]\n', False), ("", True), ('models = ["org/other"]\n', True)], ids=repr
)
def test_a_matrix_file_names_its_methods_unless_it_is_for_built_in_models(tmp_path: Path, models: str, costs: bool) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(models + '[methods]\ntorch = ["bf16"]\ngptq = ["int8"]\n')
    found = _plan(matrix=str(path), model="org/model")
    assert ("gptq/int8" in _variants(found.scenarios)) is costs
    assert not found.probed


def test_probes_cannot_be_asked_for_and_not() -> None:
    with pytest.raises(UsageError, match="opposites"):
        _plan(probes=True, no_probes=True)


def test_the_help_of_the_profile_names_every_one() -> None:
    said = next(option.help for option in OPTIONS if option.name == "profile")
    assert set(PROFILES) <= set(said.replace(",", "").split())


def test_the_quick_profile_scores_less_and_keys_tell() -> None:
    quick, default = _plan(profile="quick").scenarios[0], _plan().scenarios[0]
    assert quick.conditions.continuation_tokens == 32 < default.conditions.continuation_tokens
    assert quick.key({}) != default.key({})
