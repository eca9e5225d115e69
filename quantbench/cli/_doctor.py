"""``quantbench doctor``: what is installed, what is missing and how to get it, devices, cache."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import typer

from quantbench import machine
from quantbench.cache import CACHE_VARIABLE, cache_root
from quantbench.cli._catalogue import FormatOption, method_facts
from quantbench.cli._output import counted, print_json, print_table
from quantbench.gpus import no_gpu
from quantbench.methods import METHODS
from quantbench.scratch import Swept, sweep
from quantbench.units import GIB, format_bytes


def doctor(output: FormatOption = "text") -> None:
    """Show what is installed and missing, devices, cache."""
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": {**asdict(machine.describe()), "gpus": list(machine.describe().gpus)},
        "packages": {name: number for name, number in machine.versions().items() if name != "python"},
        "methods": [method_facts(method) for method in METHODS],
        "cache": {"swept": sweep(cache_root())._asdict(), **_cache()},
        "llama_cpp_extra_buffers": _extra_buffers(),
        "cuda": _cuda(),
    }
    if output == "json":
        return print_json(facts)
    return _print(facts)


def _cache() -> dict[str, Any]:
    root = cache_root()
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    return {
        "folder": str(root),
        "bytes": sum(path.stat().st_size for path in files),
        "files": len(files),
        "writable": existing.is_dir() and os.access(existing, os.W_OK | os.X_OK),
    }


def _extra_buffers() -> dict[str, Any]:
    """Whether llama.cpp's AMX and repacking buffers work; the answer is probed once and then remembered in the cache."""
    missing = [module for module in ("llama_cpp", "gguf") if find_spec(module) is None]
    if missing:
        return {"work": None, "note": f"not probed: {', '.join(missing)} not installed"}
    from quantbench.methods._llama_cpp_probe import extra_buffers_work

    try:
        works = extra_buffers_work()
    except Exception as error:  # noqa: BLE001 - a broken library is what this command is there to report
        return {"work": None, "note": f"not probed: {type(error).__name__}: {' '.join(str(error).split())}"}
    crashes = "this build crashes with them, so quantbench turns them off; a build by another compiler may have them work"
    return {"work": works, "note": "" if works else crashes}


def _cuda() -> dict[str, Any]:
    found = machine.describe()
    build = machine.cpu_torch()
    note = f"torch {build} is a CPU build; --device cuda needs a CUDA build of torch" if build else ""
    return {"devices": list(found.gpus), "driver": found.driver, "note": note if found.gpus else no_gpu()}


def _print(facts: dict[str, Any]) -> None:
    hardware, cache, cuda, buffers = facts["machine"], facts["cache"], facts["cuda"], facts["llama_cpp_extra_buffers"]
    works = {True: "work", False: "do not work", None: "unknown"}[buffers["work"]]
    writable = "writable" if cache["writable"] else f"not writable; set {CACHE_VARIABLE} to a folder that is"
    print_table(["", ""], [
        ["Python", facts["python"]],
        ["platform", facts["platform"]],
        ["CPU", f"{hardware['cpu']}, {hardware['cpus']} cores for this process"],
        ["ISA", hardware["isa"] or "none of those that matter"],
        ["memory", f"{hardware['memory_bytes'] / GIB:.1f} GiB"],
        ["CUDA", _with_note(", ".join(cuda["devices"]) or "none", cuda["note"])],
        ["driver", cuda["driver"] or "none"],
        ["llama.cpp extra buffers", _with_note(works, buffers["note"])],
        ["cache", f"{cache['folder']}: {format_bytes(cache['bytes'])} in {counted(cache['files'], 'file')}, {writable}"],
        *(["", sentence] for sentence in Swept(**cache["swept"]).sentences),
    ])  # fmt: skip
    typer.echo()
    print_table(["package", "version"], facts["packages"].items())
    typer.echo()
    print_table(["method", "installed"], [
        [each["method"], "yes" if each["installed"] else f"no: {', '.join(each['missing'])}; {each['install']}"]
        for each in facts["methods"]
    ])  # fmt: skip


def _with_note(text: str, note: str) -> str:
    return f"{text} ({note})" if note else text
