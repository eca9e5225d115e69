"""``quantbench quantize``: write a quantized model to a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantbench.cli.complete import completion
from quantbench.cli.output import counted
from quantbench.core.cache import folder_beside
from quantbench.core.errors import UnsupportedError, UsageError
from quantbench.core.machine import available_cpus
from quantbench.core.outside import exists, is_folder
from quantbench.core.scenario import Spec, Variant
from quantbench.core.scratch import scratch_folder
from quantbench.core.units import format_bytes
from quantbench.methods import METHODS, Settings
from quantbench.models.checkpoint import resolve
from quantbench.models.gguf import part_names
from quantbench.runtimes import RUNTIMES

if TYPE_CHECKING:
    from quantbench.core.job import Checkpoint
    from quantbench.methods import Method, Saver

_GGUF = ".gguf"
"""How the name of a file ends; any other name is a folder's."""

_TOKENIZER_FILES = ("tokenizer*", "*.model", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja")


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="as for run --model", autocompletion=completion("model"))],
    method: Annotated[
        str, typer.Option("--method", metavar="METHOD", help="see quantbench methods", autocompletion=completion("method"))
    ],
    precision: Annotated[
        str,
        typer.Option(
            "--precision", metavar="PRECISION", help="one of the method's precisions", autocompletion=completion("precision")
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="folder (empty or new) or new .gguf file to write")],
) -> None:
    """Quantize a model and write it to a folder, or to one GGUF file."""
    chosen = METHODS[method]
    variant = Variant(method=chosen.name, precision=chosen.precision(precision).name)
    saver = _saver(chosen)
    _check_free(out, chosen)
    checkpoint = resolve(model)
    chosen.check(checkpoint)
    settings = Settings(checkpoint=checkpoint, threads=available_cpus(), context=0)
    _write(saver, Spec(model=model, variant=variant), settings, out)
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    place = f"1 file: {out}" if files == [out] else f"{counted(len(files), 'file')} in {out}"
    typer.echo(f"{variant.name} of {model}: {size} bytes ({format_bytes(size)}), {place}")


def _saver(method: Method) -> Saver:
    if method.saver is None:
        able = ", ".join(each.name for each in METHODS if each.saver)
        raise UnsupportedError(f"method {method.name!r} cannot write a quantized model; methods that can: {able or 'none'}")
    return method.saver


def _check_free(out: Path, method: Method) -> None:
    if _is_one_file(out) and RUNTIMES[method.runtime].suffix != _GGUF:
        raise UsageError(f"{out} is the name of a GGUF file, and {method.name} writes a folder; give a folder with -o")
    if _is_one_file(out) and part_names(out.name) != [out.name]:
        raise UsageError(f"{out} is the name of a part of a split file, and one file is written; give another name with -o")
    if _is_one_file(out) and exists(out):
        raise UsageError(f"{out} is there already; give another name with -o, or remove it first")
    if exists(out) and not is_folder(out):
        raise UsageError(f"{out} is a file; give a folder with -o")
    if is_folder(out) and any(out.iterdir()):
        raise UsageError(f"folder {out} is not empty; give another one with -o, or empty it first")


def _is_one_file(out: Path) -> bool:
    return out.suffix == _GGUF


def _write(saver: Saver, spec: Spec, settings: Settings, out: Path) -> None:
    """Fill a folder beside ``out`` and rename it once complete, so that nobody ever opens a half-written model.

    Where ``out`` is the name of a file, the folder's only file gets it.
    """
    target = out.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    if _is_one_file(out):
        with scratch_folder(target.parent) as folder:
            saver(spec, settings, folder)
            made, *others = sorted(folder.iterdir())
            if others:
                raise UsageError(f"{spec.model} is split into {1 + len(others)} files, and {out} is one; give a folder with -o")
            made.rename(target)
        return
    with folder_beside(target) as partial:
        saver(spec, settings, partial)
        if (partial / "config.json").is_file():
            _copy_tokenizer(settings.checkpoint, partial)


def _copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """A checkpoint is useless without its tokenizer, and quantizing leaves that unchanged."""
    for pattern in _TOKENIZER_FILES:
        for path in checkpoint.path.glob(pattern):
            if path.is_file() and not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
