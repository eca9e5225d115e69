"""Known mistakes of conversions to GGUF: what a file's header says of the model beside what the original says of itself.

What a header leaves out is what llama.cpp takes then (llama-model.cpp, ``load_hparams``; llama-vocab.cpp, ``load``), what a
config.json leaves out what transformers takes. Nothing is said where either is not known.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantbench.core.text import one_line
from quantbench.models.config import read_config
from quantbench.models.gguf import GgufHeader, all_tensors, gguf_parts
from quantbench.models.safetensors import safetensors_header, weight_files

_ROPE_BASE = 10_000.0
"""Both llama.cpp's and most of transformers' models'."""

_ROPE_BASES = {"mixtral": 1e6, "smollm3": 2e6}
"""The ``default_theta`` of transformers' other models, by model type, as far as they have an architecture in ``_PLAIN``."""

_PLAIN = frozenset(
    ("llama", "mistral3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "phi3", "gemma", "gemma2", "gemma3", "olmo2", "granite",
     "smollm3", "arcee", "stablelm", "starcoder2"),
)  # fmt: skip
"""Architectures whose converter writes rotary positions and context as config.json has them; others compute them from it."""

_WITH_FACTORS = frozenset(("llama", "smollm3", "arcee", "apertus", "llama-embed"))
"""Architectures whose converter writes the factors of Llama 3's rotary scaling as a tensor."""

_OWN_OUTPUT = frozenset(("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "phi3", "olmo2", "granite"))
"""Model types whose output layer is not tied unless their config.json says so."""

_BOS_OF_BPE = frozenset(
    ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken",
     "chameleon"),
)  # fmt: skip
"""Pre-tokenizers with which llama.cpp puts a BOS in front if the header does not say whether to."""

_BOS_OF_OTHERS = {"llama": True, "bert": True, "t5": False, "rwkv": False}
"""The same by ``tokenizer.ggml.model`` for vocabularies without a pre-tokenizer."""

_FACTORS, _OUTPUT = "rope_freqs.weight", "output.weight"
_HEADS = ("lm_head.weight", "embed_out.weight")
_COMPARED = (
    "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", "context_length",
    "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "vocab_size",
)  # fmt: skip
"""Keys of an architecture that have a sentence of their own, and the vocabulary, which converters pad."""

_MOST_OTHERS = 4
_UNSCALED = ("none", 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """What a header or a config.json says of how a model computes; None where it does not say, or nobody here knows."""

    bos: bool | None
    rope_base: float | None
    scaling: tuple[str, float] | None
    factors: bool | None
    """Whether there are factors of Llama 3's rotary scaling."""
    context: float | None
    rms_epsilon: float | None
    epsilon: float | None
    tied: bool | None


def conversion_mistakes(path: Path, original: Path) -> tuple[str, ...]:
    """What a GGUF file's header says otherwise than the original: sentences of less than 80 characters. No weights are read.

    ``original`` is a checkpoint folder, a config.json or a GGUF file. The last says most: two headers are compared key by key,
    while of a config.json nothing is taken that the converter would first compute with. ModelError if one cannot be read.
    """
    header = GgufHeader(gguf_parts(path)[0])
    architecture = _text(header.get("general.architecture"))
    mistakes = []
    if header.get("tokenizer.ggml.model") == "gpt2" and header.get("tokenizer.ggml.pre") is None:
        mistakes.append("names no pre-tokenizer, so llama.cpp splits words by its default")
    if original.suffix != ".gguf":
        theirs = _said_by_config(original, architecture)
        return (*mistakes, *_differences(_said_by_header(path, header, architecture), theirs))
    other = GgufHeader(gguf_parts(original)[0])
    if architecture != (wanted := _text(other.get("general.architecture"))):
        return (*mistakes, f"architecture {architecture[:20]}; {wanted[:20]} in the original")
    theirs = _said_by_header(original, other, architecture)
    return (
        *mistakes, *_differences(_said_by_header(path, header, architecture), theirs), *_others(header, other, architecture)
    )  # fmt: skip


def _differences(ours: _Said, theirs: _Said) -> Iterator[str]:
    """A sentence for each thing that both say, and say differently."""
    if None not in (ours.bos, theirs.bos) and ours.bos != theirs.bos:
        says, but = ("puts a", "does not") if ours.bos else ("puts no", "does")
        yield f"{says} BOS in front of a text, and the original {but}"
    for what, mine, other in (
        ("rope base", ours.rope_base, theirs.rope_base),
        ("context length", ours.context, theirs.context),
        ("RMS norm epsilon", ours.rms_epsilon, theirs.rms_epsilon),
        ("layer norm epsilon", ours.epsilon, theirs.epsilon),
    ):
        if mine is not None and other is not None and not _same(mine, other):
            yield f"{what} {_shown(mine)}; {_shown(other)} in the original"
    if ours.scaling and theirs.scaling and not _same_scaling(ours.scaling, theirs.scaling):
        yield f"rope scaling {_scaled(ours.scaling)}; {_scaled(theirs.scaling)} in the original"
    if ours.factors is False and theirs.factors:
        yield f"lacks {_FACTORS}, the factors of the original's rope scaling"
    if ours.factors and theirs.factors is False:
        yield f"has factors of a rope scaling ({_FACTORS}), and the original none"
    if ours.tied and theirs.tied is False:
        yield f"lacks {_OUTPUT}, and the original's output is not tied"


def _others(ours: GgufHeader, theirs: GgufHeader, architecture: str) -> list[str]:
    """The same for any other key of the architecture that both headers have."""
    sentences = []
    for key in theirs:
        name = key.removeprefix(f"{architecture}.")
        if name == key or name in _COMPARED:
            continue
        mine, other = ours.get(key), theirs.get(key)
        if mine is not None and not _same(mine, other):
            sentences.append(f"{_text(name)[:30]} {_shown(mine)}; {_shown(other)} in the original")
    more = len(sentences) - _MOST_OTHERS
    return [*sentences[:_MOST_OTHERS], *([f"{more} more keys of the header differ from the original's"] if more > 0 else [])]


def _said_by_header(path: Path, header: GgufHeader, architecture: str) -> _Said:
    names = {tensor.name for tensor in all_tensors(path)}

    def value(key: str) -> float | None:
        return _number(header.get(f"{architecture}.{key}"))

    kind = _text(header.get(f"{architecture}.rope.scaling.type") or "linear")
    factor = value("rope.scaling.factor") or value("rope.scale_linear") or 1.0
    base = value("rope.freq_base")
    return _Said(
        bos=_bos(header), rope_base=_ROPE_BASE if base is None else base, scaling=_scaling(kind, factor),
        factors=_FACTORS in names, context=value("context_length"),
        rms_epsilon=value("attention.layer_norm_rms_epsilon"), epsilon=value("attention.layer_norm_epsilon"),
        tied=_OUTPUT not in names,
    )  # fmt: skip


def _said_by_config(original: Path, architecture: str) -> _Said:
    """What a folder or a config.json says, of rotary positions and context only where the converter takes them as they are."""
    body = read_config(original)
    config = {**body, **(body.get("text_config") or {})}
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope.get("full_attention") or rope
    kind = str(rope.get("rope_type", rope.get("type")) or "default").lower()
    usual = _ROPE_BASES.get(str(config.get("model_type")), _ROPE_BASE)
    base = rope.get("rope_theta", config.get("rope_theta", None if architecture.startswith("gemma3") else usual))
    plain = architecture in _PLAIN and kind != "dynamic"
    return _Said(
        bos=_bos_of(original) if original.is_dir() else None,
        rope_base=_number(base) if plain else None,
        scaling=_scaling(kind, _number(rope.get("factor")) or 1.0) if plain else None,
        factors=kind == "llama3" if architecture in _WITH_FACTORS else None,
        context=_number(config.get("max_position_embeddings")) if plain else None,
        rms_epsilon=_number(config.get("rms_norm_eps", config.get("norm_eps"))),
        epsilon=_number(config.get("layer_norm_eps", config.get("layer_norm_epsilon", config.get("norm_epsilon")))),
        tied=_tied(original, config),
    )  # fmt: skip


def _bos(header: GgufHeader) -> bool | None:
    """Whether llama.cpp puts a BOS in front of a text."""
    told = header.get("tokenizer.ggml.add_bos_token")
    model, before = (_text(header.get(f"tokenizer.ggml.{key}")) for key in ("model", "pre"))
    if "gemma4" in (model, before):  # llama.cpp takes a no for an error of the file
        return True
    if isinstance(told, bool):
        return told
    return before in _BOS_OF_BPE if model == "gpt2" else _BOS_OF_OTHERS.get(model)


def _bos_of(folder: Path) -> bool | None:
    """Whether a folder's tokenizer puts a BOS in front, as the converter finds it out; None if it cannot say."""
    from gguf import SpecialVocab

    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)  # it warns of templates that it reads in part
    try:
        told = SpecialVocab(folder).add_special_token.get("bos")
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # it reads the files without checking their layout
        return None
    return told if isinstance(told, bool) else None


def _tied(original: Path, config: Mapping[str, Any]) -> bool | None:
    """Whether the output layer is the embedding: as config.json says, if what the weights hold does not contradict it."""
    told = config.get("tie_word_embeddings")
    if told is None and config.get("model_type") in _OWN_OUTPUT:
        told = False
    if told is not False or not original.is_dir():
        return told if isinstance(told, bool) else None
    names = {name for path in weight_files(original) for name in safetensors_header(path)}
    return False if any(name.endswith(_HEADS) for name in names) else None


def _scaling(kind: str, factor: float) -> tuple[str, float] | None:
    """A rotary scaling in llama.cpp's words; None for one that has none there."""
    if kind in ("none", "default", "mrope", "llama3"):  # the last is in factors
        return _UNSCALED
    if kind == "linear":
        return _UNSCALED if factor == 1.0 else (kind, factor)
    if kind in ("longrope", "su"):
        return "longrope", 1.0
    return (kind, factor) if kind == "yarn" else None


def _same_scaling(first: tuple[str, float], second: tuple[str, float]) -> bool:
    return first[0] == second[0] and _same(first[1], second[1])


def _scaled(scaling: tuple[str, float]) -> str:
    kind, factor = scaling
    return kind if factor == 1.0 else f"{kind} x{_shown(factor)}"


def _same(mine: Any, other: Any) -> bool:
    """Whether two values of a key are the same: a header holds numbers in 32 bits."""
    first, second = _number(mine), _number(other)
    if first is None or second is None:
        return bool(mine == other)
    return math.isclose(first, second, rel_tol=1e-5)


def _number(value: Any) -> float | None:
    """A number of a file; None if it is something else there."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    """A text of a file, without what could control a terminal; empty if it is something else there."""
    return one_line(value) if isinstance(value, str) else ""


def _shown(value: Any) -> str:
    """A value of a file, short."""
    if (number := _number(value)) is not None:
        return f"{number:,.0f}" if number.is_integer() and abs(number) < 1e9 else f"{number:.6g}"
    return one_line(str(value))[:12]
