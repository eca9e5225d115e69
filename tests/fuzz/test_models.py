"""Files of a model that somebody else made: configurations, tokenizers, templates, and headers of weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from quantbench.core.conversation import Message
from quantbench.core.job import Checkpoint
from quantbench.models import MODELS, dummy_configs
from quantbench.models.chat import ChatTemplate
from quantbench.models.checkpoint import checkpoint_dtype, count_parameters, resolve
from quantbench.models.gguf import GgufHeader, maker
from quantbench.models.safetensors import header
from quantbench.models.vocabulary import difference, read_vocabulary
from quantbench.planning import planner
from quantbench.planning.matrix import every_variant
from quantbench.planning.published import read_artifact
from quantbench.planning.settled import held_by, settled
from quantbench.planning.usual_prompts import usual_prompts
from quantbench.runtimes.llama_cpp.dry_run import answer_or_refuse

CANARY = MODELS["canary"].folder()
QUANTIZED = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "rope_theta": 10000.0,
    "max_position_embeddings": 512, "tie_word_embeddings": True, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "load_in_4bit": False},
}  # fmt: skip


_SCHEME = {
    "targets": ["Linear"], "format": "pack-quantized", "input_activations": None,
    "weights": {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True, "dynamic": False},
}  # fmt: skip
COMPRESSED = {
    **QUANTIZED,
    "quantization_config": {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": _SCHEME},
        "ignore": ["lm_head", "re:.*gate.*"], "quantization_status": "compressed",
    },
}  # fmt: skip


def _weights(**more: tuple[str, tuple[int, ...]]) -> bytes:
    usual = {"model.embed_tokens.weight": ("F32", (4, 2)), "a.qweight": ("I32", (2, 2)), "norm.weight": ("BF16", (2,))}
    tensors = {**usual, **more}
    listed = [(name, kind, shape) for name, (kind, shape) in tensors.items()]
    return header(listed) + bytes(256)


def _folder(world: Path, **files: bytes) -> Path:
    folder = world / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in {"config.json": json.dumps(QUANTIZED).encode(), **files}.items():
        (folder / name).write_bytes(content)
    return folder


def _looked_at(fuzz: Any, folder: Path) -> None:
    """All that planning and preparing ask of a checkpoint's files."""
    for act in (
        lambda: settled(str(folder)), lambda: usual_prompts(str(folder)), lambda: _planned(folder),
        lambda: _resolved(resolve(str(folder))),
    ):  # fmt: skip
        fuzz.survives(act)


def _resolved(checkpoint: Checkpoint) -> None:
    count_parameters(checkpoint)
    if checkpoint.kind == "hf":
        checkpoint_dtype(checkpoint.path)
    held_by(checkpoint)
    read_artifact(settled("canary") or every_variant((), ())[0], checkpoint, resolve("canary"))


def _planned(place: Path) -> None:
    architecture = planner.read_architecture(str(place))
    workload = planner.workload(architecture, context=None)
    planner.plan(architecture, every_variant((), ()), workload, [planner.Device(name="this", memory_bytes=2**34)])


@pytest.mark.parametrize("name", ["gptq", "compressed", "qwen2.5-7b", "mixtral"])
def test_config(fuzz: Any, contents: Any, world: Path, name: str) -> None:
    moe = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 64}
    own = {"gptq": QUANTIZED, "compressed": COMPRESSED, "mixtral": {**QUANTIZED, **moe}}
    content = json.dumps(own[name]) if name in own else dummy_configs()[name].read_text()

    def check(content: bytes) -> None:
        _looked_at(fuzz, _folder(world, **{"config.json": content, "model.safetensors": _weights()}))

    fuzz(contents(content.encode()), check, short=15)
    assert fuzz.said


def test_tokenizer(fuzz: Any, contents: Any, world: Path) -> None:
    body = {"model": {"type": "BPE", "vocab": {"<s>": 0, "a": 1}}, "added_tokens": [{"id": 2, "content": "</s>"}]}
    canary = read_vocabulary(resolve("canary"))
    assert canary

    def check(content: bytes) -> None:
        files = {"tokenizer.json": content, "tokenizer_config.json": content, "generation_config.json": content}
        folder = _folder(world, **files, **{"model.safetensors": _weights()})
        found = read_vocabulary(Checkpoint(name="m", kind="hf", path=folder, revision="local", content_hash=""))
        assert found
        difference(found, canary)
        usual_prompts(str(folder))

    fuzz(contents(json.dumps(body).encode()), check)
    assert fuzz.said


def test_template(fuzz: Any, texts: Any) -> None:
    source = "{{ bos_token }}{% for m in messages %}{{ m.role | upper }}: {{ m['content'] | trim }}{% endfor %}{{ 1 if a }}"

    def check(text: str) -> None:
        ChatTemplate(text, {"bos_token": "<s>"}, "m").render((Message("system", "s"), Message("user", "u")))

    odd = (
        "range(3)", "raise_exception('x')", "namespace(a=1)", "dict(a=1)", "'%s' % 1", "{{", "}}", "{%", "%}", "[" * 5000,
        "x.y.z", "''.__class__",
    )  # fmt: skip
    fuzz(texts(source, odd), check)
    assert fuzz.said


def test_safetensors(fuzz: Any, contents: Any, binaries: Any, world: Path) -> None:
    whole = _weights(**{"a.weight_shape": ("I64", (2,)), "a.weight_packed": ("U8", (2, 2))})
    length = int.from_bytes(whole[:8], "little")

    def check(content: bytes) -> None:
        if isinstance(content, tuple):
            [body] = content
            content = len(body).to_bytes(8, "little") + body + bytes(256)
        _looked_at(fuzz, _folder(world, **{"model.safetensors": content}))

    fuzz(binaries(whole, 8 + length) | contents(whole[8 : 8 + length]).map(lambda body: (body,)), check)
    assert fuzz.said


def test_index(fuzz: Any, contents: Any, world: Path) -> None:
    index = {"metadata": {"total_size": 48}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "two.safetensors"}}

    def check(content: bytes) -> None:
        shards = {"model-00001-of-00002.safetensors": _weights(), "two.safetensors": _weights()}
        _looked_at(fuzz, _folder(world, **{"model.safetensors.index.json": content}, **shards))

    fuzz(contents(json.dumps(index).encode()), check)
    assert fuzz.said


def _undone(files: list[list[str]]) -> dict[str, str]:
    """What a dry run tells where llama.cpp refuses every file."""
    return {name: "llama.cpp is not asked here" for name, *_ in files}


@pytest.fixture
def model_file(tmp_path: Path) -> bytes:
    """A GGUF file with all that is read of one."""
    writer = gguf.GGUFWriter(tmp_path / "whole.gguf", "llama")
    for key, value in {
        "block_count": 1, "embedding_length": 32, "attention.head_count": 4, "attention.head_count_kv": 2, "context_length": 64,
    }.items():  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "b"])
    writer.add_array("tokenizer.ggml.token_type", [3, 1, 1])
    writer.add_uint32("tokenizer.ggml.bos_token_id", 0)
    writer.add_string("tokenizer.chat_template", "{{ messages[0].content }}")
    writer.add_string("general.author", "somebody")
    writer.add_uint32("general.alignment", 32)
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_down.weight"):
        writer.add_tensor(name, np.zeros((3, 32), dtype=np.float16))
    writer.add_tensor("output_norm.weight", np.zeros(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (tmp_path / "whole.gguf").read_bytes()


def test_gguf(fuzz: Any, binaries: Any, world: Path, model_file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantbench.runtimes.llama_cpp.plan.call", lambda _module, request, *_, **__: answer_or_refuse(request))
    monkeypatch.setattr(
        "quantbench.runtimes.llama_cpp.dry_run.tell", lambda _source, _tensors, request, _folder: _undone(request["quantized"])
    )
    start = GgufHeader(world / "whole.gguf").tensors[0].start
    path = world / "odd.gguf"

    def everything() -> None:
        read = GgufHeader(path)
        for key in read:
            read.get(key)
        _ = read.precision, maker(read)

    def check(content: bytes) -> None:
        path.write_bytes(content)
        fuzz.survives(everything)
        _looked_at(fuzz, path)

    fuzz(binaries(model_file, start), check)
    assert fuzz.said
