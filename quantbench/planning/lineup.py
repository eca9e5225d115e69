"""Who may be picked: the variants of a model, or the GGUF files of a folder or hub repository, with their bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from quantbench.core.errors import ModelError, UsageError
from quantbench.core.outside import expanded, is_folder
from quantbench.core.scenario import Conditions, Scenario, short_name
from quantbench.core.units import format_bytes
from quantbench.models import MODELS, is_dummy, is_hub_id, is_module, is_server, looks_like_path
from quantbench.models.gguf import GgufHeader, ListedFile, listed_files
from quantbench.models.hub import file_sizes
from quantbench.planning.options import RunOptions, plan
from quantbench.planning.outlook import Outlooks
from quantbench.planning.planner import room_here
from quantbench.planning.settled import settled

EXACT = ("f32", "bf16", "f16", "q8_0")
"""What the files of a repository can be compared with, the most exact first."""

_QUANTIZED = "q8_0"
_WEIGHTS = ".safetensors"
_BREAKS = "-./"
"""Where a file's name is cut into what all files have in common and what is its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A variant that may be picked, by the ``name`` of its rows; ``size_bytes`` of its weights, None where that is unknown.

    ``place`` is that of a ready file: its path, or its hub id; on a hub ``parts`` are its paths in the repository.
    ``refusal`` says why it cannot run here; empty where it may.
    """

    name: str
    size_bytes: int | None
    place: str = ""
    parts: tuple[str, ...] = ()
    refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineup:
    """The contenders, the smallest first, and the options of a run that measures them against ``model``.

    ``repository`` is the hub id, with its revision, that files come from; empty if none do. ``note`` says what they are
    compared with where nobody named it.
    """

    model: str
    contenders: tuple[Contender, ...]
    options: RunOptions
    repository: str = ""
    note: str = ""

    def within(self, memory_bytes: int | None) -> tuple[Contender, ...]:
        """Those whose weights are not known to exceed a limit, or what this machine has."""
        within = (each for each in self.contenders if memory_bytes is None or (each.size_bytes or 0) <= memory_bytes)
        return tuple(each for each in within if not each.refusal and _fits(each.size_bytes or 0, self.options))

    @property
    def smallest(self) -> str:
        """The smallest contender and its size, in words."""
        first = self.contenders[0]
        return first.name if first.size_bytes is None else f"{first.name}, {format_bytes(first.size_bytes)}"


def lineup(model: str, original: str, options: RunOptions) -> Lineup:
    """Who may be picked; asks the hub for a listing, and reads no weights. ``options`` are those of the first round.

    UsageError where there is nothing to choose among, ModelError where a hub cannot be reached.
    """
    if kind := "a dummy" if is_dummy(model) else "a server" if is_server(model) else "a module" if is_module(model) else "":
        raise UsageError(f"{model!r} is {kind}, of which nothing can be picked; give a model's folder or hub id, or GGUF files")
    _conditions(options)  # which refuses what is no device, for example
    files = _files(model)
    if files:
        if options.method or options.precision:
            raise UsageError(f"{short_name(model)} holds ready files, so --method and --precision cannot narrow it; omit them")
        return _of_files(model, files, original, options)
    if original:
        raise UsageError(f"--original is for GGUF files, and {short_name(model)} holds none; it is its own original: omit it")
    return _of_model(model, options)


def _conditions(options: RunOptions) -> Conditions:
    return Conditions(device=options.device or Conditions().device, n_gpu_layers=options.n_gpu_layers or "")


def _fits(size_bytes: int, options: RunOptions) -> bool:
    """Whether weights fit what they may fill on this machine, as far as is known."""
    here = room_here(_conditions(options), "gguf")
    return here is None or size_bytes <= here.memory_bytes


def own_names(paths: Sequence[str]) -> list[str]:
    """What is each file's own in paths without endings, as names of artifacts: ``Q4_K_M`` of ``Qwen3-8B-Q4_K_M``.

    Of equal file names in several folders the folders count too.
    """
    last = [path.rpartition("/")[2] for path in paths]
    texts = last if len(set(last)) == len(last) else list(paths)
    places = zip(*texts, strict=False) if len(texts) > 1 else ()
    common = "".join(characters[0] for characters in takewhile(lambda each: len(set(each)) == 1, places))
    start = 1 + max(common.rfind(each) for each in _BREAKS)
    names = [re.sub(r"[^\w.+-]+", "-", text[start:], flags=re.ASCII).strip("-.+_") or "file" for text in texts]
    return names if len(set(names)) == len(names) else [f"{name}-{number}" for number, name in enumerate(names, 1)]


def _files(model: str) -> list[ListedFile]:
    """The GGUF files of a folder or repository; none where it is a checkpoint, or something else."""
    folder = expanded(model)
    if model in MODELS:
        return []
    if is_folder(folder):
        sizes = {each.relative_to(folder).as_posix(): each.stat().st_size for each in folder.rglob("*") if each.is_file()}
        if not listed_files(sizes) and "config.json" not in sizes:
            raise UsageError(f"folder {model} holds neither GGUF files nor a checkpoint; give one that holds either")
    elif is_hub_id(model) and not looks_like_path(model):
        sizes = dict(file_sizes(model))
    else:
        return []
    return [] if any(path.endswith(_WEIGHTS) for path in sizes) else listed_files(sizes)


def _of_files(model: str, files: Sequence[ListedFile], original: str, options: RunOptions) -> Lineup:
    """The files as artifacts of the original, or of the most exact of them, which is then one of its own."""
    folder = expanded(model)
    local = is_folder(folder)
    places = {each: str(folder / each.first) if local else f"{model}:{each.name}" for each in files}
    names = dict(zip(files, own_names([each.name for each in files]), strict=True))
    exact: ListedFile | None = None
    source, note = original, ""
    if not original:
        fitting = [each for each in files if _fits(each.size_bytes, options)]
        exact, kind = _most_exact(model, {each: _kind(each, folder if local else None) for each in fitting})
        note = f"compared with {names[exact]}, the most exact file here that fits this machine"
        if kind == _QUANTIZED:
            note += "; what that lost itself is not seen: name the original with --original"
        names[exact], source, options = f"gguf/{kind}", places[exact], replace(options, reference=f"gguf/{kind}")
    found = [
        Contender(name=names[each], size_bytes=each.size_bytes, place=places[each], parts=() if local else each.parts)
        for each in files
    ]
    artifacts = tuple(f"{names[each]}={places[each]}" for each in files if each is not exact)
    if not artifacts:
        raise UsageError(
            f"{short_name(model)} holds one GGUF file, and a pick is among several; name its original with --original"
        )
    options = replace(options, model=(source,), artifact=artifacts)
    plan(options)  # which refuses an original that cannot be one
    return Lineup(
        model=source, contenders=_by_size(found), note=note, repository="" if local else model, options=options
    )  # fmt: skip


def _most_exact(model: str, kinds: Mapping[ListedFile, str]) -> tuple[ListedFile, str]:
    for wanted in EXACT:
        if found := next((each for each, kind in kinds.items() if kind == wanted), None):
            return found, wanted
    listed = ", ".join(EXACT)
    raise UsageError(
        f"{short_name(model)} has no file that fits this machine to compare the others with ({listed}); name the original with "
        "--original"
    )


def _kind(file: ListedFile, folder: Path | None) -> str:
    """The precision that a file's header names, or on a hub the last of EXACT that its name has as a word."""
    if folder:
        try:
            return GgufHeader(folder / file.first).precision
        except (ModelError, OSError):  # its row will say why; it is nothing to compare others with
            return ""
    words = re.split(r"[^a-z0-9_]+", file.name.lower())
    return next((kind for kind in EXACT if kind in words), "")


def _of_model(model: str, options: RunOptions) -> Lineup:
    """The variants that a run of the model measures, each with its forecast."""
    held = settled(model)
    if held and not held.is_source:
        what = f"{short_name(model)} is {held.variants[0].name} already"
        raise UsageError(f"{what}, and a pick is among several; give its original")
    options = replace(options, model=(model,))
    outlooks = Outlooks()
    planned = [each for each in plan(options).scenarios if not each.variant.control]
    return Lineup(model=model, contenders=_by_size([_forecast(each, outlooks) for each in planned]), options=options)


def _forecast(scenario: Scenario, outlooks: Outlooks) -> Contender:
    outlook = outlooks.by_name(scenario)
    size = outlook.weight_bytes
    return Contender(name=scenario.variant.name, size_bytes=size if isinstance(size, int) else None, refusal=outlook.refusal)


def _by_size(found: Sequence[Contender]) -> tuple[Contender, ...]:
    """The smallest first; those of unknown size last."""
    return tuple(sorted(found, key=lambda each: (each.size_bytes is None, each.size_bytes or 0)))
