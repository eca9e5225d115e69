"""``vllm serve`` from an environment of its own: what vLLM pins does not go together with what quantbench needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path

from quantbench.core.errors import MissingDependency, UnsupportedError
from quantbench.core.gpus import chosen_gpus
from quantbench.core.outside import expanded
from quantbench.core.protocols import Settings
from quantbench.runtimes.openai.started import NO_GPU, PATIENCE_S, LocalServer, Place, Program, started

VARIABLE = "QUANTBENCH_VLLM"
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_CPU_CACHE_GIB = "4"
"""Memory for keys and values on the CPU, unless the user says otherwise: vLLM would take nearly all that the machine has."""

_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")
"""Words in the names of variables whose values are stored nowhere."""

_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""It tells nobody what it runs, and fetches nothing: the checkpoint is here."""


def executable() -> str:
    """``vllm`` of the environment, or the program, that ``QUANTBENCH_VLLM`` names; else ``vllm`` on the path.

    MissingDependency if there is none.
    """
    named = os.environ.get(VARIABLE, "")
    place = expanded(named)
    if found := shutil.which(str(place / "bin" / "vllm" if place.is_dir() else place) if named else "vllm"):
        return found
    if named:
        raise MissingDependency(f"{VARIABLE}={named} holds no vllm; give an environment with vLLM, or the path of its vllm")
    raise MissingDependency(
        f"there is no vllm on the path; install vLLM into an environment of its own and set {VARIABLE} to that folder"
    )


@contextmanager
def serve(
    settings: Settings, *, precision: str, device: str, flags: Sequence[str], patience_s: float = PATIENCE_S
) -> Iterator[LocalServer]:
    """Serve the checkpoint folder of ``settings``; ``precision`` is a type of torch, or a quantization of vLLM's, or empty.

    See ``started``. Random weights are vLLM's own. No code of the checkpoint is run.
    """
    program, checkpoint = executable(), settings.checkpoint
    if device != "cpu" and _is_for_cpus(program):
        raise UnsupportedError(f"{program} is built for CPUs and the device is {device}; use cpu, or set {VARIABLE} to another")

    def command(place: Place) -> list[str]:
        return [
            program, "serve", str(checkpoint.path), "--served-model-name", place.alias,
            "--host", "127.0.0.1", "--port", str(place.port), "--max-model-len", str(settings.context),
            "--no-enable-prefix-caching", "--generation-config", "vllm",
            *(["--load-format", "dummy"] if checkpoint.random_weights else []), *_asked(precision), *flags,
        ]  # fmt: skip

    def env(place: Place) -> Mapping[str, str]:
        return {**os.environ, **_QUIET, "VLLM_API_KEY": place.key, **_placed(device, settings.threads)}

    found = Program(name="vllm serve", kernel=f"vllm {device}", command=command, env=env, version=("/version", "version"))
    with started(found, patience_s=patience_s) as server:
        yield server


def environment() -> str:
    """The user's own settings of vLLM, which it takes from the environment; secrets are none of them."""
    named = ((name, value) for name, value in sorted(os.environ.items()) if name.startswith("VLLM_"))
    settings = {name: value for name, value in named if not any(word in name for word in _SECRET)}
    return " ".join(f"{name}={value}" for name, value in settings.items())


def _is_for_cpus(program: str) -> bool:
    """Whether it is known to be a build for CPUs, which would serve from there whatever GPU it is shown."""
    folders = [str(each) for each in Path(program).resolve().parents[1].glob("lib/python*/site-packages")]
    return any(each.version.endswith("+cpu") for each in distributions(name="vllm", path=folders))


def _asked(precision: str) -> list[str]:
    if precision in _DTYPES:
        return ["--dtype", _DTYPES[precision]]
    return ["--quantization", precision] if precision else []


def _placed(device: str, threads: int) -> Mapping[str, str]:
    """On the CPU as many threads as asked for, each on a core, unless the user has placed them; on a GPU, that one or all."""
    if device == "cpu":
        cores = sorted(os.sched_getaffinity(0))[:threads]
        usual = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), "VLLM_CPU_KVCACHE_SPACE": _CPU_CACHE_GIB}
        return {**NO_GPU, **{name: os.environ.get(name, value) for name, value in usual.items()}}
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in chosen_gpus(device))}
