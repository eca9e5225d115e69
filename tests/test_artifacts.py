"""Published artifacts: read by their files, refused where they are of another model, as far off as the method's own row."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.errors import QuantbenchError, UnsupportedError, UsageError
from quantbench.core.job import Checkpoint
from quantbench.core.machine import describe
from quantbench.core.record import Record, Status
from quantbench.core.scenario import Conditions, Effort, Scenario, Variant
from quantbench.methods import METHODS, Settings
from quantbench.models.checkpoint import resolve
from quantbench.models.vocabulary import Vocabulary, difference, read_vocabulary
from quantbench.planning.options import Plan, RunOptions, plan, single
from quantbench.planning.published import artifact_variant, read_artifact
from quantbench.results.rows import groups
from quantbench.results.store import Run, Store, load
from quantbench.running.runner import Runner
from quantbench.tables.kinds.artifacts import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

SHORT = Conditions(threads=1, output_tokens=4, answer_tokens=4, continuation_tokens=24)
UNTIMED = Effort(untimed="only the quality counts here", energy=False)
MADE = (
    "gguf/f16", "gguf/q8_0", "gguf/q6_k", "gguf/q4_k_m", "gguf/q2_k", "gptq/int4-g128", "awq/int4-g128", "bitsandbytes/int8",
    "bitsandbytes/nf4", "bitsandbytes/nf4-dq", "bitsandbytes/fp4", "torchao/int8-wo",
)  # fmt: skip
"""What the methods write, and read again as if somebody else had."""


def options(**given: Any) -> RunOptions:
    return replace(RunOptions.read(lambda option: option.default), **given)


def saved(variant: str, folder: Path) -> Path:
    """A quantization of the canary as its method writes it: a folder, or the one file in it."""
    method, _, precision = variant.partition("/")
    scenario = Scenario(model="canary", variant=Variant(method=method, precision=precision), prompts="two", conditions=SHORT)
    saver = METHODS[method].saver
    assert saver is not None
    out = folder / variant.replace("/", "-")
    saver(scenario.spec, Settings(checkpoint=resolve("canary"), threads=1, context=64), out)
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        if not list(out.glob("*.gguf")):
            shutil.copy(resolve("canary").path / name, out)
    return next(out.glob("*.gguf"), out)


def measured(scenarios: Sequence[Scenario], results: Path) -> dict[str, Record]:
    """The records by id, in one process and untimed."""
    run = Run(machine=describe(), versions={}, command="", commit="", profile="quick", engine="inline")
    asked = Plan(scenarios=tuple(scenarios), effort=UNTIMED, engine="inline")
    with Runner(asked, Store(str(results), run)) as runner:
        return {scenario.id: runner.measure(scenario) for scenario in scenarios}


def of(variant: Variant, prompts: str = "two", conditions: Conditions = SHORT, model: str = "canary") -> Scenario:
    return Scenario(model=model, variant=variant, prompts=prompts, conditions=conditions)


@pytest.mark.usefixtures("artifacts")
def test_an_artifact_is_as_far_off_as_the_row_of_the_method_that_made_it(tmp_path: Path) -> None:
    artifacts = {each.replace("/", "-") + ".theirs": saved(each, tmp_path) for each in MADE}
    theirs = [of(artifact_variant(f"{name}={place}")) for name, place in artifacts.items()]
    own = [of(_variant(each)) for each in MADE]
    found = measured([*own, *theirs], tmp_path / "results")
    assert {record.status for record in found.values()} == {Status.OK}, [each.reason for each in found.values()]
    rows = load(str(tmp_path / "results")).set_index("scenario_id")
    for made, mine, other in zip(MADE, own, theirs, strict=True):
        one, two = rows.loc[mine.id], rows.loc[other.id]
        assert f"{two['method']}/{two['precision']}" == made
        assert two["artifact"] == other.variant.artifact
        assert two["artifact_sha256"]
        assert {"artifact_maker", "artifact_note"} <= json.loads(two["null_reasons"]).keys()
        assert pd.isna(two["artifact_audit"]), made
        assert two["bits"] == one["bits"]
        assert two["kld_mean"] == pytest.approx(one["kld_mean"], abs=1e-6), made
        assert two["weight_bytes"] == one["weight_bytes"], made
    (shown,) = table(groups(load(str(tmp_path / "results"))))
    assert len(shown.rows) == 2 * len(MADE)


def _variant(name: str) -> Variant:
    method, _, precision = name.partition("/")
    return Variant(method=method, precision=precision)


def test_an_artifact_goes_with_the_reference_alone_unless_more_is_named(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    asked = (f"theirs={tmp_path / 'theirs'}",)
    names = [each.variant.name for each in plan(options(model=("canary",), artifact=asked)).scenarios]
    assert names == ["torch/fp32", "torch/fp32", "theirs"]  # the second is the control
    more = plan(options(model=("canary",), artifact=asked, method=("gguf",), precision=("q8_0",))).scenarios
    assert [each.variant.name for each in more] == ["torch/fp32", "torch/fp32", "gguf/q8_0", "theirs"]
    assert more[-1].id == "canary/theirs/mixed"
    one = single(options(), "canary", asked[0], "two")
    assert one.id == "canary/theirs/two"


def test_artifacts_stand_in_a_matrix(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(f'models = ["canary"]\n[artifacts]\none = "{tmp_path}"\n[methods]\ngguf = ["q8_0"]\n')
    names = [each.variant.name for each in plan(options(matrix=str(path))).scenarios]
    assert names == ["torch/fp32", "torch/fp32", "gguf/q8_0", "one"]
    path.write_text('models = ["canary"]\n[artifacts]\none = 7\n')
    with pytest.raises(UsageError, match=r"artifacts\.one"):
        plan(options(matrix=str(path)))


@pytest.mark.parametrize(
    ("model", "asked", "said"),
    [
        (("canary",), ("theirs",), "NAME=WHERE"),
        (("canary",), ("a/b=.",), "NAME=WHERE"),
        (("canary",), ("one=", "two=."), "NAME=WHERE"),
        (("canary",), ("one=.", "one=.."), "two artifacts are named 'one'"),
        (("canary", "lstm"), ("one=.",), "belong to one model"),
        (("lstm",), ("one=.",), "a module"),
        (("dummy:tinyllama-1.1b",), ("one=.",), "a dummy"),
        (("canary",), ("one=dummy:tinyllama-1.1b",), "give a folder"),
        (("canary",), ("one=./is-not-there",), "does not exist"),
    ],
)
def test_what_cannot_be_an_artifact_is_said_before_anything_is_measured(
    model: tuple[str, ...], asked: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        plan(options(model=model, artifact=asked))


def test_the_key_is_of_the_content_and_not_of_the_place() -> None:
    here, there = (of(artifact_variant(f"one={place}")) for place in ("here", "there"))
    assert here.key({"artifact": "x"}) == there.key({"artifact": "x"}) != here.key({"artifact": "y"})
    assert of(artifact_variant("two=here")).key({"artifact": "x"}) != here.key({"artifact": "x"})


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Checkpoint]:
    """Copies of the canary, each with one JSON file changed."""

    def make(name: str, change: Callable[[dict[str, Any]], None]) -> Checkpoint:
        folder = tmp_path / f"changed-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(resolve("canary").path, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        body = json.loads((folder / name).read_text())
        change(body)
        (folder / name).write_text(json.dumps(body))
        return resolve(str(folder))

    return make


def _refusal(checkpoint: Checkpoint) -> str:
    with pytest.raises(UnsupportedError) as caught:
        read_artifact(artifact_variant(f"one={checkpoint.path}"), checkpoint, resolve("canary"))
    return str(caught.value)


def test_an_artifact_of_another_model_is_refused_with_the_first_difference(changed: Callable[..., Checkpoint]) -> None:
    def swap(body: dict[str, Any]) -> None:
        known = body["model"]["vocab"]
        first, second = (next(text for text, number in known.items() if number == wanted) for wanted in (300, 301))
        known[first], known[second] = 301, 300

    def add(body: dict[str, Any]) -> None:
        body["added_tokens"].append({**body["added_tokens"][0], "id": 2048, "content": "<new>"})

    assert "its token 300 is" in _refusal(changed("tokenizer.json", swap))
    assert "token 2048, '<new>', which the original has not" in _refusal(changed("tokenizer.json", add))
    assert "its texts begin with token 7" in _refusal(changed("config.json", lambda body: body.update(bos_token_id=7)))
    layers = _refusal(changed("config.json", lambda body: body.update(num_hidden_layers=1)))
    assert "its number of layers is 1" in layers
    read = "hqq, which no method here reads"
    assert read in _refusal(changed("config.json", lambda body: body.update(quantization_config={"quant_method": "hqq"})))


def test_another_chat_template_is_a_note(changed: Callable[..., Checkpoint]) -> None:
    found = changed("tokenizer_config.json", lambda body: body.update(chat_template="{{ messages }}"))
    variant, facts = read_artifact(artifact_variant(f"one={found.path}"), found, resolve("canary"))
    assert variant.name == "one"
    assert variant.method == "torch"
    assert facts["artifact_note"] == "its chat template is not the original's"
    assert facts["artifact_sha256"] == found.content_hash


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(QuantbenchError, match="is an adapter"):
        resolve(str(tmp_path))


@pytest.mark.usefixtures("artifacts")
def test_a_file_says_the_vocabulary_of_the_folder_it_was_made_from(tmp_path: Path) -> None:
    file, folder = read_vocabulary(resolve(str(saved("gguf/f16", tmp_path)))), read_vocabulary(resolve("canary"))
    assert file
    assert folder
    assert difference(file, folder) == difference(folder, file) == ""
    assert len(file.tokens) == len(folder.tokens)


TOKENS = st.dictionaries(st.integers(0, 20), st.text("ab\u2581 ", max_size=3))


@given(TOKENS, TOKENS)
def test_two_vocabularies_differ_where_an_id_means_another_text(one: dict[int, str], other: dict[int, str]) -> None:
    def vocabulary(tokens: dict[int, str]) -> Vocabulary:
        return Vocabulary(tokens=tokens, begin=None, ends=frozenset(), template="")

    def plain(tokens: Iterable[tuple[int, str]]) -> dict[int, str]:
        return {number: text.replace("\u2581", " ").strip() for number, text in tokens}

    same = plain(one.items()) == plain(other.items())
    assert (difference(vocabulary(one), vocabulary(other)) == "") is same
    assert difference(vocabulary(one), vocabulary(one)) == ""
