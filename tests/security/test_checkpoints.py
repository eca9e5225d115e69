"""Checkpoints from elsewhere: nothing in them is run, and nothing outside of them is read."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import quantbench as public
from quantbench.core.errors import ModelError
from quantbench.models.checkpoint import resolve
from quantbench.models.safetensors import safetensors_header

from .conftest import Command, Trap

QUICK: dict[str, Any] = {
    "prompts": "two", "profile": "quick", "output_tokens": 2, "engine": "inline", "no_probes": True, "no_energy": True,
    "threads": 1, "results": None,
}  # fmt: skip
SECRET = "the users own secret"


def changed(path: Path, **values: object) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_trap_works(trap: Trap) -> None:
    pickle.loads(pickle.dumps(trap))  # noqa: S301 - our own
    assert trap.shut


def test_of_pickled_weights_nothing_is_run_and_the_row_says_why(
    quantbench: Command, checkpoint: Path, here: Path, trap: Trap
) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(trap))
    why = "has only pickled weights (pytorch_model.bin), which can run code when loaded; quantbench reads safetensors"

    run = quantbench("run", "--model=./theirs", "--method=torch,gguf", "--precision=bf16,q8_0", "--prompts=two")
    quantize = quantbench("quantize", "./theirs", "--method=gguf", "--precision=q8_0", "-o", "out")

    assert run.returncode == 1
    rows = pd.read_parquet(here / "results" / "scenarios")
    assert len(rows) >= 2
    assert all(why in reason for reason in rows.reason)
    assert (quantize.returncode, quantize.stdout) == (2, "")
    assert why in quantize.stderr
    assert quantize.stderr.count("\n") == 1
    assert not trap.shut


def test_code_and_pickles_beside_sound_weights_are_left_alone(checkpoint: Path, trap: Trap) -> None:
    """Its configurations name classes of its own; a model whose type transformers knows is opened with transformers'."""
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin"):
        (checkpoint / name).write_bytes(pickle.dumps(trap))
    for name in ("modeling_theirs.py", "tokenization_theirs.py", "configuration_theirs.py", "__init__.py", "sitecustomize.py"):
        (checkpoint / name).write_text(trap.source)
    classes = {"AutoConfig": "configuration_theirs.Theirs", "AutoModelForCausalLM": "modeling_theirs.Theirs"}
    changed(checkpoint / "config.json", auto_map=classes)
    changed(checkpoint / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_theirs.Theirs", None]})

    found = public.measure(checkpoint, "torch/bf16", **QUICK)

    assert found.weight_bytes > 0
    assert not trap.shut


@pytest.mark.usefixtures("in_process")
def test_a_model_that_only_its_own_code_can_open_is_refused(checkpoint: Path, trap: Trap) -> None:
    (checkpoint / "modeling_theirs.py").write_text(trap.source)
    classes = {"AutoConfig": "modeling_theirs.Theirs", "AutoModelForCausalLM": "modeling_theirs.Theirs"}
    changed(checkpoint / "config.json", model_type="theirs", auto_map=classes)

    with pytest.raises(public.QuantbenchError) as caught:
        public.measure(checkpoint, "torch/bf16", **QUICK)

    assert "\n" not in str(caught.value)
    assert not trap.shut


@pytest.mark.usefixtures("artifacts")
def test_llama_cpps_converter_imports_no_code_that_a_tokenizer_names(
    quantbench: Command, checkpoint: Path, trap: Trap, users_cache: Path
) -> None:
    """It trusts what it converts, and a name may point anywhere: here to the checkpoint's own folder."""
    (checkpoint / "tokenizer.model").unlink()  # else it asks for no tokenizer
    (checkpoint / "evil.py").write_text(trap.source)
    changed(checkpoint / "config.json", architectures=["DreamModel"])  # one of those for which it trusts code
    changed(checkpoint / "tokenizer_config.json", auto_map={"AutoTokenizer": [f"{checkpoint}--evil.Theirs", None]})

    done = quantbench(
        "quantize", "./theirs", "--method=gguf", "--precision=f16", "-o", "out", QUANTBENCH_CACHE=str(users_cache)
    )  # fmt: skip

    assert not trap.shut
    assert done.returncode == 2, done.stdout
    assert "BPE pre-tokenizer was not recognized" in done.stderr, "it did not come as far as the tokenizer"


# --- links


def link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.secret", "notes.txt", "merges.txt", "README.md"])
def test_a_link_to_another_file_of_the_users_is_refused(name: str, checkpoint: Path, tmp_path: Path) -> None:
    """Else its content would stand in prompts, in results, or in a model that is written."""
    secret = tmp_path / "id_rsa"
    secret.write_text(SECRET)
    link(checkpoint / name, secret)

    said = refusal(checkpoint)

    assert said.startswith(f"{checkpoint / name} is a link to {secret}, outside of the checkpoint and of another name")
    assert SECRET not in said


def test_a_way_out_through_a_link_is_no_hubs_cache(checkpoint: Path, tmp_path: Path) -> None:
    """An archive may be built like the hub's cache, with its folder of contents a link to one of the user's folders."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "0123").write_text(SECRET)
    snapshot = tmp_path / "models--org--m" / "snapshots" / "0"
    snapshot.parent.mkdir(parents=True)
    checkpoint.rename(snapshot)
    (tmp_path / "models--org--m" / "blobs").symlink_to(tmp_path / "private")
    link(snapshot / "notes.txt", Path("../../blobs/0123"))

    assert "is a link to" in refusal(snapshot)


def in_hubs_cache(checkpoint: Path, place: Path) -> Path:
    snapshot = place / "models--org--m" / "snapshots" / "0"
    blobs = place / "models--org--m" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(checkpoint.iterdir())):
        path.rename(blobs / f"{number:040x}")
        (snapshot / path.name).symlink_to(Path("../../blobs", f"{number:040x}"))
    return snapshot


def of_links(checkpoint: Path, place: Path) -> Path:
    folder = place / "links"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def with_weights_elsewhere(checkpoint: Path, place: Path) -> Path:
    (checkpoint / "model.safetensors").rename(place / "seven.safetensors")
    (checkpoint / "model.safetensors").symlink_to(place / "seven.safetensors")
    return checkpoint


def with_links_inside(checkpoint: Path, place: Path) -> Path:
    (checkpoint / "original").mkdir()
    (checkpoint / "tokenizer.json").rename(checkpoint / "original" / "t.json")
    (checkpoint / "tokenizer.json").symlink_to("original/t.json")
    (checkpoint / "gone.txt").symlink_to("nowhere")
    return checkpoint


@pytest.mark.parametrize("laid", [in_hubs_cache, of_links, with_weights_elsewhere, with_links_inside])
def test_links_that_people_use_are_followed(laid: Callable[[Path, Path], Path], checkpoint: Path, tmp_path: Path) -> None:
    before = resolve(str(checkpoint)).content_hash
    assert resolve(str(laid(checkpoint, tmp_path))).content_hash == before


# --- what an index names


def header(size: int) -> bytes:
    text = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "{outside}/secret.safetensors", "weights.bin", "sub/../../secret.safetensors"]
)
def test_an_index_names_safetensors_of_its_own_folder_only(name: str, checkpoint: Path, tmp_path: Path, trap: Trap) -> None:
    """A file may be safetensors at its beginning and a pickle of torch's at its end; by another name it would be that."""
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "sub").mkdir()
    for path in (checkpoint.parent / "secret.safetensors", tmp_path / "secret.safetensors", checkpoint / "weights.bin"):
        path.write_bytes(header(100_000))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(trap) + bytes(100_000))
        safetensors_header(path)  # it is one
    index = {"weight_map": {"w": name.format(outside=tmp_path)}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))

    said = refusal(checkpoint)

    assert ", no .safetensors file of that folder; download it again" in said
    assert not trap.shut


def test_an_adapter_beside_weights_is_refused(checkpoint: Path, trap: Trap) -> None:
    """Else transformers adds it to them, unpickled if need be, and the row would describe another model."""
    (checkpoint / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/other"}))
    (checkpoint / "adapter_model.bin").write_bytes(pickle.dumps(trap))

    assert "holds an adapter (adapter_config.json), which transformers would add" in refusal(checkpoint)
    assert not trap.shut
