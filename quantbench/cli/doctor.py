"""``quantbench doctor``: what is installed, what is missing and how to get it, devices, cache."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import distributions
from importlib.util import find_spec
from typing import Any, TypeVar

import typer

from quantbench.cli.catalogue import FormatOption, method_facts
from quantbench.cli.output import counted, print_json, print_table
from quantbench.core import machine
from quantbench.core.cache import CACHE_VARIABLE, cache_root
from quantbench.core.gpus import no_gpu
from quantbench.core.other_work import busy_now
from quantbench.core.registry import Registry
from quantbench.core.scratch import Swept, sweep
from quantbench.core.units import GIB, format_bytes
from quantbench.export import EXPORTERS
from quantbench.methods import METHODS
from quantbench.metrics import METRICS
from quantbench.models import MODELS
from quantbench.models.architecture import FAMILIES
from quantbench.planning.packages import installed
from quantbench.running.engines import ENGINES
from quantbench.runtimes import RUNTIMES
from quantbench.tables import KINDS

_UNKNOWN = "unknown: see problems"
Diagnosis = TypeVar("Diagnosis")


def doctor(output: FormatOption = "text") -> None:
    """Show what is installed, what is missing, devices and cache."""
    problems: list[str] = []
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": _attempt(problems, "machine", _machine),
        "other_work": _attempt(problems, "other work", busy_now),
        "packages": _attempt(problems, "packages", _packages) or {},
        "methods": _attempt(problems, "methods", _methods) or [],
        "cache": _attempt(problems, "cache", lambda: {"swept": sweep(cache_root())._asdict(), **_cache()}),
        "llama_cpp_extra_buffers": _attempt(problems, "llama.cpp extra buffers", _extra_buffers),
        "cuda": _attempt(problems, "CUDA", _cuda),
    }
    for registry in (RUNTIMES, METHODS, METRICS, ENGINES, MODELS, FAMILIES, KINDS, EXPORTERS):
        problems += _attempt(problems, "plug-ins", partial(_broken, registry)) or []
    problems += _attempt(problems, "other projects", _strangers) or []
    facts["problems"] = list(dict.fromkeys(problems))
    if output == "json":
        return print_json(facts)
    return _print(facts)


def _attempt(problems: list[str], what: str, answer: Callable[[], Diagnosis]) -> Diagnosis | None:
    """The answer; where it fails, None and one more entry in ``problems``, so that the other checks still run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken plug-ins warn; they are listed as problems instead
            return answer()
    except Exception as error:  # noqa: BLE001 - this command exists to report whatever is broken
        problems.append(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}")
        return None


def _broken(registry: Registry[Any]) -> list[str]:
    return [f"plug-in {name!r} cannot be imported and is left out: {why}" for name, why in registry.broken.items()]


def _strangers() -> list[str]:
    """Other projects whose module has this one's name: what was installed last has overwritten files of what was first."""
    holders = (each for each in distributions() if "\nquantbench/" in f"\n{each.read_text('RECORD') or ''}")
    others = sorted({each.name for each in holders} - {"quantbench"})
    return [f"{name}, another project, has a module quantbench too; uninstall it, and install this again" for name in others]


def _machine() -> dict[str, Any]:
    return {**asdict(machine.describe()), "gpus": list(machine.describe().gpus)}


def _packages() -> dict[str, str]:
    return {name: number for name, number in installed().items() if name != "python"}


def _methods() -> list[dict[str, Any]]:
    return [method_facts(method) for method in METHODS]


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
    """Whether llama.cpp's AMX and repacking buffers work; probed once, then remembered in the cache."""
    missing = [module for module in ("llama_cpp", "gguf") if find_spec(module) is None]
    if missing:
        return {"work": None, "note": f"not probed: {', '.join(missing)} not installed"}
    from quantbench.runtimes.llama_cpp.probe import extra_buffers_work

    try:
        works = extra_buffers_work()
    except Exception as error:  # noqa: BLE001 - this command exists to report a broken library
        return {"work": None, "note": f"not probed: {type(error).__name__}: {' '.join(str(error).split())}"}
    crashes = "this build crashes with them, so quantbench turns them off; they may work in a build from another compiler"
    return {"work": works, "note": "" if works else crashes}


def _cuda() -> dict[str, Any]:
    found = machine.describe()
    build = machine.cpu_torch()
    note = f"torch {build} is a CPU build; --device cuda needs a CUDA build of torch" if build else ""
    return {"devices": list(found.gpus), "driver": found.driver, "note": note if found.gpus else no_gpu()}


def _print(facts: dict[str, Any]) -> None:
    print_table(["", ""], [
        ["Python", facts["python"]],
        ["platform", facts["platform"]],
        *(_hardware_lines(facts["machine"]) if facts["machine"] else [["machine", _UNKNOWN]]),
        ["other work now", _UNKNOWN if facts["other_work"] is None else facts["other_work"] or "none that would slow a run"],
        *(_cuda_lines(facts["cuda"]) if facts["cuda"] else [["CUDA", _UNKNOWN]]),
        ["llama.cpp extra buffers", _buffers(facts["llama_cpp_extra_buffers"])],
        ["cache", _cache_line(facts["cache"]) if facts["cache"] else _UNKNOWN],
        *(["", each] for each in (Swept(**facts["cache"]["swept"]).sentences if facts["cache"] else ())),
    ])  # fmt: skip
    typer.echo()
    print_table(["package", "version"], facts["packages"].items())
    typer.echo()
    print_table(["method", "installed"], [
        [each["method"], "yes" if each["installed"] else f"no: {', '.join(each['missing'])}; {each['install']}"]
        for each in facts["methods"]
    ])  # fmt: skip


    if facts["problems"]:
        typer.echo()
        print_table(["problem"], [[problem] for problem in facts["problems"]])


def _hardware_lines(hardware: dict[str, Any]) -> list[list[str]]:
    return [
        ["CPU", f"{hardware['cpu']}, {hardware['cpus']} cores for this process"],
        ["ISA", hardware["isa"] or "no extension that matters here"],
        ["memory", f"{hardware['memory_bytes'] / GIB:.1f} GiB"],
    ]


def _cuda_lines(cuda: dict[str, Any]) -> list[list[str]]:
    return [
        ["CUDA", _with_note(", ".join(cuda["devices"]) or "none", cuda["note"])],
        ["driver", cuda["driver"] or "none"],
    ]


def _buffers(found: dict[str, Any] | None) -> str:
    if found is None:
        return _UNKNOWN
    return _with_note({True: "work", False: "do not work", None: "unknown"}[found["work"]], found["note"])


def _cache_line(cache: dict[str, Any]) -> str:
    writable = "writable" if cache["writable"] else f"not writable; set {CACHE_VARIABLE} to a folder that is"
    return f"{cache['folder']}: {format_bytes(cache['bytes'])} in {counted(cache['files'], 'file')}, {writable}"


def _with_note(text: str, note: str) -> str:
    return f"{text} ({note})" if note else text
