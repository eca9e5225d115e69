"""llama-cpp-python's own server on a GGUF file.

``python -m quantbench.runtimes.llama_cpp.server CONFIG BUFFERS`` is what its process runs: the server's own main, with
llama.cpp's extra weight buffers off where BUFFERS says ``plain`` (see ``probe``: the server has no option for it).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quantbench.core.children import python_module
from quantbench.core.errors import MissingDependency
from quantbench.runtimes.llama_cpp.model import require_offload
from quantbench.runtimes.llama_cpp.templates import unread
from quantbench.runtimes.openai.started import NO_GPU, PATIENCE_S, LocalServer, Place, Program, started

_SCORING = "scoring"
"""The same file, loaded again for log-probabilities: these need logits of every position, which would slow timed prompts."""

_NEEDS = ("llama_cpp", "fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")
_ALL_LAYERS = -1
_WHOLE = 0
"""llama.cpp's LLAMA_SPLIT_MODE_NONE; importing it would load the library here."""


@contextmanager
def serve(
    path: Path, *, threads: int, context: int, device: str, extra_buffers: bool, gpu_layers: int | None = None,
    patience_s: float = PATIENCE_S,
) -> Iterator[LocalServer]:  # fmt: skip
    """Serve the GGUF file ``path``; see ``started``. Without ``gpu_layers`` all layers are on the device.

    Raises MissingDependency without the server's packages, and ModelError for a GPU that llama.cpp was built without or does
    not see.
    """
    missing = [module for module in _NEEDS if find_spec(module) is None]
    if missing:
        raise MissingDependency(
            f"starting a server needs {', '.join(missing)}, not installed; pip install 'llama-cpp-python[server]'"
        )
    require_offload(device)

    def command(place: Place) -> list[str]:
        config = place.folder / "config.json"
        asked = _settings(path, place, threads=threads, context=context, device=device, gpu_layers=gpu_layers)
        config.write_text(json.dumps(asked))
        return python_module(__name__, str(config), "own" if extra_buffers else "plain")

    def env(_: Place) -> Mapping[str, str]:
        return {**os.environ, **(NO_GPU if device == "cpu" else {})}

    kernel = f"llama_cpp.server {version('llama_cpp_python')} {device}" + ("" if extra_buffers else " plain-buffers")
    program = Program(
        name="llama-cpp-python's server", kernel=kernel, command=command, env=env, health="/v1/models", scoring=_SCORING
    )
    with started(program, patience_s=patience_s) as server:
        yield server


def _settings(
    path: Path, place: Place, *, threads: int, context: int, device: str, gpu_layers: int | None
) -> dict[str, Any]:
    """The server's configuration: its own defaults but for what the conditions ask, and requests that queue.

    By default it cuts off the answer that it is sending as soon as another request arrives.
    """
    model = {
        "model": str(path), "n_ctx": context, "n_threads": threads, "n_threads_batch": threads, "verbose": False,
        "n_gpu_layers": 0 if device == "cpu" else gpu_layers or _ALL_LAYERS,
    }  # fmt: skip
    if ":" in device:  # that GPU alone; llama.cpp would split the model over all
        model |= {"split_mode": _WHOLE, "main_gpu": int(device.partition(":")[2])}
    timed = {**model, "model_alias": place.alias, "logits_all": False}
    scoring = {**model, "model_alias": _SCORING, "logits_all": True}
    return {
        "host": "127.0.0.1", "port": place.port, "api_key": place.key, "interrupt_requests": False,
        "models": [timed, scoring],
    }  # fmt: skip


def main() -> None:
    """Run the server."""
    config, buffers = sys.argv[1:]
    import llama_cpp.llama_cpp as library
    from llama_cpp.server import __main__ as server
    from llama_cpp.server.settings import ModelSettings, ServerSettings

    if buffers == "plain":
        defaults = library.llama_model_default_params

        def plain() -> Any:
            params = defaults()
            params.use_extra_bufts = False
            return params

        library.llama_model_default_params = plain
    fields = {"config_file", *ServerSettings.model_fields, *ModelSettings.model_fields}
    for name in [each for each in os.environ if each.lower() in fields]:
        del os.environ[name]  # HOST, PORT, SEED and the like would be taken for the server's settings
    sys.argv = ["llama_cpp.server", "--config_file", config]
    with unread():
        server.main()


if __name__ == "__main__":
    main()
