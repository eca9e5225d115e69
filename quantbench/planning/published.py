"""Published artifacts of a model: what their files hold, who made them, and whether they are of that model at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from quantbench.core.errors import QuantbenchError, UnsupportedError, UsageError
from quantbench.core.job import Checkpoint
from quantbench.core.scenario import Variant, short_name
from quantbench.models import check_name, is_dummy, is_hub_id, is_module, is_server
from quantbench.models.architecture import Architecture
from quantbench.models.gguf import GgufHeader, maker
from quantbench.models.vocabulary import Vocabulary, difference, read_vocabulary
from quantbench.planning import planner
from quantbench.planning.settled import held_by

MAKER, CONTENT, NOTE = "artifact_maker", "artifact_sha256", "artifact_note"
"""Facts of an artifact, and the columns that hold them."""
PLACE = "artifact_place"
"""Where its files were, as asked; a fact without a column."""

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_ANOTHER = "it is of another model, or was changed; name the model that it was made from with --model"
_UNREAD = "no tokenizer.json was found, so its vocabulary was not compared"
_TEMPLATE = "its chat template is not the original's"


def artifact_variant(text: str) -> Variant:
    """The variant that ``NAME=WHERE`` asks for; UsageError for anything else."""
    name, equals, place = text.partition("=")
    if not equals or not place.strip() or not _NAME.fullmatch(name):
        raise UsageError(f"artifact {text!r} is not NAME=WHERE; write for example theirs=ORG/REPO:Q4_K_M or mine=./file.gguf")
    return Variant(method="", precision="", artifact=name, place=place.strip())


def check_original(model: str) -> None:
    """Raise UsageError for a model of which nobody publishes artifacts."""
    kind = "a dummy" if is_dummy(model) else "a server" if is_server(model) else "a module" if is_module(model) else ""
    if kind:
        raise UsageError(f"artifacts cannot be compared with {model!r}, {kind}; name the model that they were made from")


def check_place(variant: Variant) -> None:
    """Raise UsageError for an artifact that is nowhere, or is nothing that was published; asks no network."""
    if is_dummy(variant.place) or is_server(variant.place) or is_module(variant.place):
        raise UsageError(f"artifact {variant.artifact!r} is at {variant.place!r}; give a folder, a .gguf file or a hub id")
    check_name(variant.place)


def read_artifact(variant: Variant, checkpoint: Checkpoint, original: Checkpoint) -> tuple[Variant, Mapping[str, str]]:
    """The variant with the method and precision that the files hold, and what else they say, by the names above.

    Raises UnsupportedError for an artifact that no method reads, or that is not of the original; ModelError for damaged files.
    """
    method, precision = held_by(checkpoint)
    notes = "; ".join([*_same_vocabulary(checkpoint, original), *_same_shapes(checkpoint, original)])
    maker = _maker(variant.place, checkpoint)
    found = {MAKER: maker, CONTENT: checkpoint.content_hash, PLACE: variant.place, NOTE: notes}
    return replace(variant, method=method, precision=precision), {name: text for name, text in found.items() if text}


def _same_vocabulary(checkpoint: Checkpoint, original: Checkpoint) -> list[str]:
    mine, theirs = read_vocabulary(checkpoint), _vocabulary(original)
    if mine is None or theirs is None:
        return [_UNREAD]
    if why := difference(mine, theirs):
        raise _refused(checkpoint, original, why)
    return [_TEMPLATE] * (mine.template.strip() != theirs.template.strip())


@lru_cache(maxsize=1)  # one original has many artifacts
def _vocabulary(checkpoint: Checkpoint) -> Vocabulary | None:
    return read_vocabulary(checkpoint)


def _same_shapes(checkpoint: Checkpoint, original: Checkpoint) -> list[str]:
    try:
        mine, theirs = (planner.read_architecture(str(each.path), any_age=True) for each in (checkpoint, original))
    except QuantbenchError as error:
        return [f"its shapes were not compared ({error})"]
    for what, one, other in zip(_SHAPES, _shapes(mine), _shapes(theirs), strict=True):
        if one != other:
            raise _refused(checkpoint, original, f"its {what} is {one} and the original's {other}")
    return []


def _refused(checkpoint: Checkpoint, original: Checkpoint, why: str) -> UnsupportedError:
    name, other = short_name(checkpoint.name), short_name(original.name)
    return UnsupportedError(f"{name} cannot be compared with {other}: {why}; {_ANOTHER}")


_SHAPES = ("number of layers", "hidden size", "number of KV heads", "head size")


def _shapes(architecture: Architecture) -> tuple[int, int, int, int]:
    """What _SHAPES names."""
    first = architecture.layers[0] if architecture.layers else None
    return len(architecture.layers), architecture.width, first.heads if first else 0, first.head_dim if first else 0


def _maker(place: str, checkpoint: Checkpoint) -> str:
    """Who made it: the organization on the hub, or whom a GGUF file's header names; empty where nobody is named."""
    repository = place.partition(":")[0]
    if is_hub_id(repository) and checkpoint.revision != "local":
        return repository.partition("/")[0]
    return maker(GgufHeader(checkpoint.path)) if checkpoint.kind == "gguf" else ""
