"""Served models: any OpenAI-compatible server, or llama-cpp-python's own server, started for the run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import urlsplit

from quantbench.core.errors import UnsupportedError, UsageError
from quantbench.core.scenario import Precision, ServerAddress, Spec, Variant, parse_server
from quantbench.core.waiting import described
from quantbench.methods import METHODS, Endpoint, Settings, method
from quantbench.models.architecture import Architecture
from quantbench.models.footprint import Weights

KEY_VARIABLE = "QUANTBENCH_SERVER_KEY"
OPENAI_VARIABLE = "OPENAI_API_KEY"
STARTED_HERE = "gguf/"
ELSEWHERE = "the server holds the weights, in a precision that is unknown until it is queried"

AS_SERVED = Precision(name="as-served", bits=None, title="as served", usual=False)


@method(
    "server",
    precisions=[AS_SERVED],
    requires=["httpx"],
    runtime="endpoint",
    anchor="",
    kinds=("hf", "gguf", "server"),
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
        raise UnsupportedError(f"no server was named; give --server URL, or --server {STARTED_HERE}PRECISION to start one here")
    if wanted.startswith(STARTED_HERE):
        with _start(wanted, spec, settings) as endpoint:
            yield endpoint
        return
    address = parse_server(wanted)
    with connect(address, key=bearer_key(address)) as endpoint:
        yield endpoint


@open_server.forecasts
def forecast_server(architecture: Architecture, precisions: Sequence[str]) -> Mapping[str, Weights]:  # noqa: ARG001
    """Nothing: another machine holds the weights."""
    return {each: Weights(weight_bytes=None, note=ELSEWHERE) for each in precisions}


@open_server.asks
def recipe(spec: Spec) -> Mapping[str, str]:
    """The server, the most requests at once, and what a locally served GGUF file is made from."""
    server = spec.conditions.server
    made = METHODS["gguf"].recipe(_served_file(server, spec)) if server.startswith(STARTED_HERE) else {}
    return {**made, "server": server, "concurrency": str(spec.conditions.concurrency)}


def bearer_key(address: ServerAddress) -> str:
    """The key from the environment, empty if there is none; OpenAI's is never sent unencrypted to another machine."""
    place = urlsplit(address.url)
    private = place.scheme == "https" or place.hostname in ("localhost", "127.0.0.1", "::1")
    name = KEY_VARIABLE if os.environ.get(KEY_VARIABLE) or not private else OPENAI_VARIABLE
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"{name} holds characters that are not allowed in an HTTP header; set it again")
    return key


def _served_file(server: str, spec: Spec) -> Spec:
    """The spec of the GGUF file that a locally started server serves."""
    return replace(spec, variant=Variant(method="gguf", precision=server.removeprefix(STARTED_HERE)))


@contextmanager
def _start(server: str, spec: Spec, settings: Settings) -> Iterator[Endpoint]:
    """llama-cpp-python's server on the model's GGUF file, in the precision that ``server`` names."""
    gguf = METHODS["gguf"]
    gguf.check(settings.checkpoint)
    wanted = _served_file(server, spec)
    gguf.precision(wanted.variant.precision)
    artifact = gguf.prepare(wanted, settings)
    assert artifact is not None
    from quantbench.runtimes.llama_cpp.probe import extra_buffers_work
    from quantbench.runtimes.llama_cpp.server import SCORING, serve
    from quantbench.runtimes.openai.client import connect

    with serve(
        artifact.path,
        threads=settings.threads,
        context=settings.context,
        device=spec.conditions.device,
        extra_buffers=extra_buffers_work(),
    ) as local:
        facts = {
            "kernel": local.kernel,
            "server": f"{server}, started here",
            "served_model": wanted.variant.name,
            "threads": str(settings.threads),
            "waiting": described(),
            "context": str(settings.context),
        }
        with connect(local.address, key=local.key, facts=facts, artifact=artifact, scoring_model=SCORING) as endpoint:
            yield endpoint
