"""Configurations by name: the built-in ones against published counts and transformers, files, folders and the hub."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from quantbench.core.errors import MissingDependency, ModelError, UsageError
from quantbench.core.install import install_hint
from quantbench.models import MODELS, dummy_configs
from quantbench.models.config import read_architecture

PUBLISHED = {
    "llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320, "llama-2-70b": 68_976_648_192, "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248, "llama-3.1-70b": 70_553_706_496, "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096, "qwen2.5-7b": 7_615_616_512, "tinyllama-1.1b": 1_100_048_384,
}  # fmt: skip
CONFIG = {
    "model_type": "llama", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 64, "max_position_embeddings": 32,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_built_in_configurations_are_the_published_models(name: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    read = read_architecture(name)
    config = AutoConfig.for_model(**json.loads(dummy_configs()[name].read_text()))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert read.parameters == PUBLISHED[name]
    assert {each.name: each.shape for each in read.tensors} == {
        each: tuple(tensor.shape) for each, tensor in model.named_parameters()
    }
    assert read.buffer_bytes == sum(each.nbytes for each in model.buffers())
    assert (read.name, read.context, read.note) == (name, config.max_position_embeddings, "")


def test_every_built_in_configuration_is_known_here() -> None:
    assert set(dummy_configs()) == set(PUBLISHED)


def test_a_dummy_is_planned_like_the_model_that_it_stands_for() -> None:
    dummy, model = read_architecture("dummy:llama-3.1-8b"), read_architecture("llama-3.1-8b")
    assert (dummy.name, dummy.tensors, dummy.layers) == ("dummy:llama-3.1-8b", model.tensors, model.layers)


def test_the_canary_is_counted_as_its_file_does() -> None:
    from safetensors import safe_open

    with safe_open(MODELS["canary"].folder() / "model.safetensors", "np") as stored:
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118 - it is no dict
    assert {each.name: each.shape for each in read_architecture("canary").tensors} == shapes


def test_a_file_and_its_folder_are_the_same_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    file, folder = read_architecture(str(tmp_path / "config.json")), read_architecture(str(tmp_path))
    assert file.tensors == folder.tensors
    assert (file.name, folder.name) == (str(tmp_path / "config.json"), str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON (Expecting property name"),
        ("[" * 100_000, "cannot be read as JSON (it is nested too deeply"),
        ("[]", "does not hold a JSON object; download or copy it again"),
        ("{}", "names no model_type, so it is not a model's config.json; give one that save_pretrained wrote"),
        ('{"model_type": 3}', "names no model_type, so it is not a model's config.json; give one that save_pretrained wrote"),
        ('{"model_type": "llama"}', "has no hidden_size, which its shapes depend on; give a complete config.json"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ModelError) as caught:
        read_architecture(str(tmp_path))
    assert str(caught.value).startswith(f"{path} {message}")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match=r"config\.json cannot be read as JSON \(.*codec"):
        read_architecture(str(tmp_path))


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        read_architecture(str(tmp_path))
    wanted = f"{tmp_path / 'config.json'} does not exist; give a config.json as save_pretrained writes it"
    assert str(caught.value) == wanted


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/config.json", "path './no/config.json' does not exist; give a config.json, a folder that holds one, or a .gguf"),
        ("llama-2-7", "unknown model 'llama-2-7'; did you mean 'llama-2-7b'"),
        ("canery", "unknown model 'canery'; did you mean 'canary'?"),
        ("org/tiny:Q4_K_M", "unknown model 'org/tiny:Q4_K_M'"),
        ("lstm", "model 'lstm' is a module without tokens and has no config.json; give a model that has one"),
        ("http://localhost:8080/v1", "model 'http://localhost:8080/v1' is a server and has no config.json; give a model"),
    ],
)
def test_a_name_that_can_be_no_model_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_architecture(name)
    assert str(caught.value).startswith(message)


class _Hub(SimpleNamespace):
    """Stands in for the hub's client: one repository in a folder, or none to be reached."""

    folder: Path | None

    def hf_hub_download(self, repository: str, filename: str, **asked: object) -> str:
        if self.folder is None:
            raise OSError("\nConnection refused\nand forty lines more")
        assert (repository, filename, asked["revision"]) == ("org/tiny", "config.json", "main")
        return str(self.folder / filename)


def test_of_the_hub_only_the_configuration_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setitem(sys.modules, "huggingface_hub", _Hub(folder=tmp_path))
    assert read_architecture("org/tiny@main").tensors == read_architecture(str(tmp_path)).tensors


def test_a_hub_out_of_reach_says_how_to_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", _Hub(folder=None))
    with pytest.raises(ModelError) as caught:
        read_architecture("org/tiny")
    assert str(caught.value) == (
        "model 'org/tiny' could not be fetched from the hub (Connection refused); check the name, the network and HF_TOKEN; "
        "or give the path of its config.json, which is enough"
    )


def test_without_the_hubs_client_a_path_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependency, match=re.escape(f"{install_hint('torch')}; or give the path of its config.json")):
        read_architecture("org/tiny")


def test_reading_shapes_imports_nothing_heavy() -> None:
    code = (
        "import sys; from quantbench.models.config import read_architecture; read_architecture('llama-2-70b');"
        "print(*sorted({'torch', 'transformers', 'numpy', 'pandas', 'gguf', 'huggingface_hub'} & set(sys.modules)), sep=',')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
