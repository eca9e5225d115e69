"""Served models: any OpenAI-compatible server, or one that is started for the run (llama-cpp-python's, llama-server, vLLM)."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from quantbench.core.errors import UnsupportedError, UsageError
from quantbench.core.protocols import N_GPU_LAYERS, Artifact
from quantbench.core.scenario import Precision, ServerAddress, Spec, Variant, parse_server
from quantbench.core.serving import LLAMA_SERVER, VLLM, StartedServer, parse_started
from quantbench.core.waiting import described
from quantbench.methods import METHODS, Endpoint, Settings, method
from quantbench.models.architecture import Architecture
from quantbench.models.footprint import Weights
from quantbench.runtimes import reader_of
from quantbench.runtimes.openai.started import LocalServer

KEY_VARIABLE = "QUANTBENCH_SERVER_KEY"
OPENAI_VARIABLE = "OPENAI_API_KEY"
ELSEWHERE = "the server holds the weights, in a precision that is unknown until it is queried"

AS_SERVED = Precision(name="as-served", bits=None, title="as served", usual=False)

READS = ("awq", "bitsandbytes", "compressed-tensors", "fp8", "gptq", "torchao")
"""What vLLM serves of checkpoints that were quantized elsewhere; it refuses by itself what it cannot."""


@method(
    "server",
    precisions=[AS_SERVED],
    requires=["httpx"],
    runtime="endpoint",
    anchor="",
    kinds=("hf", "gguf", "server"),
    reads=READS,
    endpoint=True,
)
@contextmanager
def open_server(spec: Spec, settings: Settings) -> Iterator[Endpoint]:
    """Served by any OpenAI-compatible server and asked over HTTP, as it is"""
    from quantbench.runtimes.openai.client import connect

    wanted = spec.conditions.server
    if settings.checkpoint.kind == "server":
        if wanted:
            raise UnsupportedError(f"the model is already a server, and --server names {wanted!r} as well; remove one of them")
        wanted = settings.checkpoint.name
    if not wanted:
        raise UnsupportedError("no server was named; give --server URL, or --server gguf/PRECISION to start one here")
    if started := parse_started(wanted):
        with _start(started, spec, settings) as endpoint:
            yield endpoint
        return
    address = parse_server(wanted)
    with connect(address, key=bearer_key(address)) as endpoint:
        yield endpoint


@open_server.forecasts
def forecast_server(architecture: Architecture, precisions: Sequence[str]) -> Mapping[str, Weights]:  # noqa: ARG001
    """Nothing: another machine holds the weights."""
    return {each: Weights(weight_bytes=None, note=ELSEWHERE) for each in precisions}


@open_server.holds
def held(quantization: Mapping[str, Any]) -> Sequence[str]:  # noqa: ARG001 - none, whatever it is
    """Nothing that is planned by itself: a server is measured where it is named."""
    return ()


@open_server.asks
def recipe(spec: Spec) -> Mapping[str, str]:
    """The server, the most requests at once, and what a locally served GGUF file is made from."""
    server = spec.conditions.server
    started = parse_started(server)
    is_file = started and started.kind != VLLM and started.precision
    made = METHODS["gguf"].recipe(_as_gguf(spec, started.precision)) if started and is_file else {}
    layers = spec.conditions.n_gpu_layers if started and started.kind != VLLM else ""
    return {
        **made, "server": server, "concurrency": str(spec.conditions.concurrency), **({N_GPU_LAYERS: layers} if layers else {})
    }  # fmt: skip


def bearer_key(address: ServerAddress) -> str:
    """The key from the environment, empty if there is none; OpenAI's is never sent unencrypted to another machine."""
    place = urlsplit(address.url)
    private = place.scheme == "https" or place.hostname in ("localhost", "127.0.0.1", "::1")
    name = KEY_VARIABLE if os.environ.get(KEY_VARIABLE) or not private else OPENAI_VARIABLE
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"{name} holds characters that are not allowed in an HTTP header; set it again")
    return key


Started = tuple[AbstractContextManager[LocalServer], Mapping[str, str], Artifact | None]
"""A server to start, facts about what it serves, and the file if quantbench made it."""


@contextmanager
def _start(server: StartedServer, spec: Spec, settings: Settings) -> Iterator[Endpoint]:
    """The server that ``server`` names on the model's files, started for as long as it is used."""
    from quantbench.runtimes.openai.client import connect

    prepare = _vllm if server.kind == VLLM else _llama_cpp
    starting, found, artifact = prepare(server, spec, settings)
    with starting as local:
        facts = {
            "kernel": local.kernel, "server": f"{spec.conditions.server}, started here", "threads": str(settings.threads),
            "waiting": described(), "context": str(settings.context), "server_flags": shlex.join(server.flags), **found,
        }  # fmt: skip
        with connect(local.address, key=local.key, facts=facts, artifact=artifact, local=local) as endpoint:
            yield endpoint


def _llama_cpp(server: StartedServer, spec: Spec, settings: Settings) -> Started:
    """llama.cpp on the model's GGUF file, behind llama-cpp-python's server or its own."""
    from quantbench.runtimes.llama_cpp import llama_server
    from quantbench.runtimes.llama_cpp import server as python_server
    from quantbench.runtimes.llama_cpp.offload import gpu_layers
    from quantbench.runtimes.llama_cpp.probe import extra_buffers_work

    variant, artifact = _file(server, spec, settings)
    conditions = spec.conditions
    slots = conditions.concurrency if server.kind == LLAMA_SERVER else 1
    layers = gpu_layers(artifact.path, conditions, context=settings.context, batch=slots)
    if server.kind == LLAMA_SERVER:
        starting = llama_server.serve(
            artifact.path, settings, device=conditions.device, concurrency=slots, flags=server.flags, gpu_layers=layers
        )
    else:
        starting = python_server.serve(
            artifact.path, threads=settings.threads, context=settings.context, device=conditions.device,
            extra_buffers=extra_buffers_work(), gpu_layers=layers,
        )  # fmt: skip
    return starting, {"served_model": variant, **({} if layers is None else {N_GPU_LAYERS: str(layers)})}, artifact


def _file(server: StartedServer, spec: Spec, settings: Settings) -> tuple[str, Artifact]:
    """The GGUF variant that is served, and its file: the model in the named precision; a ready file by default as it is."""
    gguf, checkpoint = METHODS["gguf"], settings.checkpoint
    gguf.check(checkpoint)
    reader = reader_of(checkpoint.path) if checkpoint.kind == "gguf" else None
    precision = server.precision or (reader.read_precision(checkpoint.path) if reader and reader.read_precision else "")
    if not precision:
        raise UsageError(
            f"{checkpoint.name} has to be made a GGUF file before it can be served; say in which precision, "
            f"for example --server {server.kind}/q8_0"
        )
    gguf.precision(precision)
    wanted = _as_gguf(spec, precision)
    artifact = gguf.prepare(wanted, settings)
    assert artifact is not None
    return wanted.variant.name, artifact


def _vllm(server: StartedServer, spec: Spec, settings: Settings) -> Started:
    """A checkpoint folder, served by vLLM."""
    from quantbench.runtimes.openai import vllm

    checkpoint = settings.checkpoint
    if checkpoint.kind != "hf":
        raise UnsupportedError(f"vllm serves checkpoint folders, and {checkpoint.name} is none; use --server llama-server")
    starting = vllm.serve(settings, precision=server.precision, device=spec.conditions.device, flags=server.flags)
    found = {"served_model": f"checkpoint {server.precision}".strip(), "vllm_environment": vllm.environment()}
    return starting, found, None


def _as_gguf(spec: Spec, precision: str) -> Spec:
    return replace(spec, variant=Variant(method="gguf", precision=precision))
