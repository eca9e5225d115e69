"""llama.cpp's own ``llama-server`` on a GGUF file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from quantbench.core.errors import MissingDependency
from quantbench.core.protocols import Settings
from quantbench.runtimes.openai.started import NO_GPU, PATIENCE_S, LocalServer, Place, Program, started

VARIABLE = "QUANTBENCH_LLAMA_SERVER"
_ALL_LAYERS = 999
_SETTINGS = "LLAMA_"
"""What its settings begin with in the environment: only those that the row names may count."""


def executable() -> str:
    """The program that ``QUANTBENCH_LLAMA_SERVER`` names, or else ``llama-server`` on the path; MissingDependency if none."""
    named = os.environ.get(VARIABLE, "")
    if found := shutil.which(named or "llama-server"):
        return found
    if named:
        raise MissingDependency(f"{VARIABLE}={named} is no program; give the path of a llama-server")
    raise MissingDependency(f"there is no llama-server on the path; install llama.cpp, or set {VARIABLE} to its path")


@contextmanager
def serve(
    path: Path, settings: Settings, *, device: str, concurrency: int, flags: Sequence[str], gpu_layers: int | None = None,
    patience_s: float = PATIENCE_S,
) -> Iterator[LocalServer]:  # fmt: skip
    """Serve the GGUF file ``path`` with a slot of the whole context for each of ``concurrency`` requests; see ``started``.

    Without ``gpu_layers`` all layers are on the device.
    """
    program, threads = executable(), str(settings.threads)

    def command(place: Place) -> list[str]:
        return [
            program, "--model", str(path), "--alias", place.alias, "--host", "127.0.0.1", "--port", str(place.port),
            "--ctx-size", str(settings.context * concurrency), "--parallel", str(concurrency),
            "--threads", threads, "--threads-batch", threads, *_placed(device, gpu_layers), *flags,
        ]  # fmt: skip

    def env(place: Place) -> Mapping[str, str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
        # by its environment, so that versions without this cache start as well; it would copy a prompt's state at each request
        own = {"LLAMA_API_KEY": place.key, "LLAMA_ARG_CACHE_RAM": "0"}
        return {**others, **own, **(NO_GPU if device == "cpu" else {})}

    found = Program(
        name="llama-server", kernel=f"llama-server {device}", command=command, env=env, version=("/props", "build_info")
    )
    with started(found, patience_s=patience_s) as server:
        yield server


def _placed(device: str, layers: int | None) -> list[str]:
    """On a GPU all layers or so many, on that one alone if it has a number; it refuses to start without such a device."""
    if device == "cpu":
        return ["--n-gpu-layers", "0"]
    number = device.partition(":")[2]
    return ["--n-gpu-layers", str(layers or _ALL_LAYERS), *(["--device", f"CUDA{number}"] if number else [])]
