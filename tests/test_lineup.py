"""Who may be picked: files by what is their own in their names, what they are compared with, and who does not fit."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.errors import QuantbenchError, UsageError
from quantbench.planning import lineup as lineups
from quantbench.planning.lineup import Contender, Lineup, lineup, own_names
from quantbench.planning.options import RunOptions, plan
from quantbench.planning.planner import Device
from quantbench.planning.published import artifact_variant

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15, "bf16": 32}
"""Numbers of llama.cpp's file types."""


def options(**given: Any) -> RunOptions:
    return replace(RunOptions.read(lambda option: option.default), prompts=("ten",), profile="quick", **given)


def file(path: Path, precision: str, size: int = 200) -> Path:
    """A GGUF file without tensors, whose header names a precision."""
    key = b"general.file_type"
    header = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key + struct.pack("<II", 4, TYPES[precision])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.ljust(size, b"\0"))
    return path


def on_hub(monkeypatch: pytest.MonkeyPatch, sizes: Mapping[str, int]) -> None:
    monkeypatch.setattr(lineups, "file_sizes", lambda _: sizes)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["Qwen3-8B-Q4_K_M", "Qwen3-8B-UD-Q4_K_XL", "Qwen3-8B-BF16"], ["Q4_K_M", "UD-Q4_K_XL", "BF16"]),
        (["m.Q4_K_M", "m.Q4_K_S"], ["Q4_K_M", "Q4_K_S"]),
        (["BF16/m-BF16", "m-Q8_0"], ["BF16", "Q8_0"]),
        (["a/m-Q4_0", "b/m-Q4_0"], ["a-m-Q4_0", "b-m-Q4_0"]),
        (["model", "model-q4"], ["model", "model-q4"]),
        (["only"], ["only"]),
        (["é", "ü"], ["file-1", "file-2"]),
    ],
)
def test_a_file_is_named_after_what_is_its_own(paths: list[str], names: list[str]) -> None:
    assert own_names(paths) == names


@given(st.lists(st.text("aB1-._/ é", min_size=1, max_size=8), min_size=1, max_size=6, unique=True))
def test_names_are_those_of_artifacts_and_distinct(paths: list[str]) -> None:
    names = own_names(paths)
    assert len(set(names)) == len(paths)
    assert [artifact_variant(f"{name}=x").artifact for name in names] == names


def test_the_files_of_a_folder_are_compared_with_the_most_exact(tmp_path: Path) -> None:
    file(tmp_path / "m-mid.gguf", "q8_0", 300)
    file(tmp_path / "m-top.gguf", "f16", 400)
    file(tmp_path / "deep" / "m-low.gguf", "q4_0", 200)
    file(tmp_path / "mmproj-m-f32.gguf", "f32")
    found = lineup(str(tmp_path), "", options())
    assert [(each.name, each.size_bytes) for each in found.contenders] == [("low", 200), ("mid", 300), ("gguf/f16", 400)]
    assert found.model == found.contenders[-1].place == str(tmp_path / "m-top.gguf")
    assert found.note == "compared with top, the most exact file here that fits this machine"
    planned = plan(found.options).scenarios
    names = [each.variant.name for each in planned if not each.variant.control]
    assert sorted(names) == sorted(each.name for each in found.contenders)  # so that rows and contenders have one name
    assert {each.conditions.reference for each in planned} == {"gguf/f16"}


def test_an_original_may_be_named_and_is_then_none_of_them(tmp_path: Path) -> None:
    file(tmp_path / "m-q4.gguf", "q4_0")
    found = lineup(str(tmp_path), "canary", options())
    assert [each.name for each in found.contenders] == ["m-q4"]
    assert (found.model, found.note) == ("canary", "")
    assert found.options.artifact == (f"m-q4={tmp_path / 'm-q4.gguf'}",)


def test_what_q8_0_lost_is_said_not_to_be_seen(tmp_path: Path) -> None:
    file(tmp_path / "m-a.gguf", "q8_0")
    file(tmp_path / "m-b.gguf", "q4_0")
    assert "what that lost itself is not seen: name the original with --original" in lineup(str(tmp_path), "", options()).note


def test_the_files_of_a_repository_keep_their_place_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {f"BF16/m-BF16-0000{part}-of-00002.gguf": 50 for part in (1, 2)}
    on_hub(monkeypatch, {"m-Q4_K_M.gguf": 30, "m-UD-Q4_K_XL.gguf": 32, "config.json": 1, **parts})
    found = lineup("org/m-GGUF@v1", "", options())
    sizes = {each.name: each.size_bytes for each in found.contenders}
    assert list(sizes.items()) == [("Q4_K_M", 30), ("UD-Q4_K_XL", 32), ("gguf/bf16", 100)]
    assert found.model == "org/m-GGUF@v1:BF16/m-BF16"
    assert found.repository == "org/m-GGUF@v1"
    assert found.contenders[-1].parts == tuple(parts)
    assert len(plan(found.options).scenarios) == 4  # with the control; nothing is asked of the hub
    monkeypatch.setattr(lineups, "room_here", lambda *_: Device(name="small", memory_bytes=60))
    with pytest.raises(UsageError, match="no file that fits this machine to compare the others with"):
        lineup("org/m-GGUF", "", options())


def test_a_repository_with_a_checkpoint_is_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    on_hub(monkeypatch, {"model.safetensors": 5, "extra.gguf": 5})
    monkeypatch.setattr(lineups, "Outlooks", lambda: pytest.fail("reached the model's own variants"))
    with pytest.raises(pytest.fail.Exception, match="own variants"):
        lineup("org/m", "", options(method=("torch",)))


def test_the_variants_of_a_model_are_those_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lineup("canary", "", options(method=("torch", "gguf"), precision=("fp32", "q4_k_m", "q8_0")))
    assert [each.name for each in found.contenders] == ["gguf/q4_k_m", "gguf/q8_0", "torch/fp32"]  # by their bytes
    sizes = [each.size_bytes or 0 for each in found.contenders]
    assert [each.name for each in found.within(sizes[1])] == ["gguf/q4_k_m", "gguf/q8_0"]
    assert found.within(10) == ()
    assert found.smallest.startswith("gguf/q4_k_m, 3.")
    monkeypatch.setattr(lineups, "room_here", lambda *_: Device(name="small", memory_bytes=sizes[0]))
    assert [each.name for each in found.within(None)] == ["gguf/q4_k_m"]


def test_an_unknown_size_is_not_dropped_and_a_refusal_is() -> None:
    unknown, refused = Contender(name="a", size_bytes=None), Contender(name="b", size_bytes=1, refusal="too large")
    found = Lineup(model="m", contenders=(refused, unknown), options=options())
    assert found.within(1) == (unknown,)


@pytest.mark.parametrize(
    ("model", "original", "said"),
    [
        ("dummy:tinyllama-1.1b", "", "is a dummy"),
        ("lstm", "", "is a module"),
        ("http://localhost:1/v1", "", "is a server"),
        ("canary", "canary", "omit it"),
        ("nothing-of-that-name", "", "unknown model"),
        ("./nowhere", "", "does not exist"),
        ("empty", "", "holds neither GGUF files nor a checkpoint"),
        ("one", "", "no file that fits this machine to compare"),
        ("exact", "", "holds one GGUF file"),
        ("one/m-q4.gguf", "", "is gguf/q4_0 already"),
    ],
)
def test_what_nothing_can_be_picked_from_is_one_sentence(
    model: str, original: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    file(tmp_path / "one" / "m-q4.gguf", "q4_0")
    file(tmp_path / "exact" / "m-f16.gguf", "f16")
    with pytest.raises(QuantbenchError, match=said) as caught:
        lineup(model, original, options())
    assert "\n" not in str(caught.value)


def test_ready_files_are_not_narrowed_by_method(tmp_path: Path) -> None:
    file(tmp_path / "m-f16.gguf", "f16")
    with pytest.raises(UsageError, match="omit them"):
        lineup(str(tmp_path), "", options(method=("gguf",)))
