"""llama-cpp-python's own server on a GGUF file, in a process of its own that ends with the one that started it.

``python -m quantbench.runtimes.llama_cpp.server CONFIG BUFFERS`` is what that process runs: the server's own main, with
llama.cpp's extra weight buffers off where BUFFERS says ``plain`` (see ``probe``: the server has no option for it).
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quantbench.core.children import python_module
from quantbench.core.errors import MissingDependency, ModelError
from quantbench.core.scenario import ServerAddress
from quantbench.core.scratch import scratch_folder
from quantbench.runtimes.llama_cpp.model import require_offload

TIMED = "timed"
SCORING = "scoring"
"""The same file, loaded again for log-probabilities: these need logits of every position, which would slow timed prompts."""

_NEEDS = ("llama_cpp", "fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")
_WHOLE = 0
"""llama.cpp's LLAMA_SPLIT_MODE_NONE; importing it would load the library here."""

_NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""On the CPU: with no layer on a GPU that it sees, llama.cpp would still read long prompts there."""

_PATIENCE_S = 300.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalServer:
    """A running server: its address, the key it requires, its name, and its process."""

    address: ServerAddress
    key: str
    kernel: str
    pid: int


@contextmanager
def serve(
    path: Path, *, threads: int, context: int, device: str, extra_buffers: bool, patience_s: float = _PATIENCE_S
) -> Iterator[LocalServer]:
    """Serve the GGUF file ``path`` on a free port of the loopback; the process is killed at the end.

    Raises MissingDependency without the server's packages, ModelError for a GPU that llama.cpp was built without or does not
    see, and when it does not answer within ``patience_s``.
    """
    missing = [module for module in _NEEDS if find_spec(module) is None]
    if missing:
        raise MissingDependency(
            f"starting a server needs {', '.join(missing)}, not installed; pip install 'llama-cpp-python[server]'"
        )
    require_offload(device)
    with scratch_folder() as folder:
        config, log = folder / "config.json", folder / "log.txt"
        key = secrets.token_hex()
        settings = _settings(path, threads=threads, context=context, device=device)
        config.write_text(json.dumps({**settings, "api_key": key}))
        buffers = "own" if extra_buffers else "plain"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                python_module(__name__, str(config), buffers),
                stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT,
                env={**os.environ, **(_NO_GPU if device == "cpu" else {})},
            )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{settings['port']}/v1"
            _wait_until_ready(process, url, key, log, patience_s)
            kernel = f"llama_cpp.server {version('llama_cpp_python')} {device}" + ("" if extra_buffers else " plain-buffers")
            yield LocalServer(address=ServerAddress(url=url, model=TIMED), key=key, kernel=kernel, pid=process.pid)
        finally:
            process.kill()
            process.communicate()


def _settings(path: Path, *, threads: int, context: int, device: str) -> dict[str, Any]:
    """The server's configuration: its own defaults but for what the conditions ask, and requests that queue.

    By default it cuts off the answer that it is sending as soon as another request arrives.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    model = {
        "model": str(path), "n_ctx": context, "n_threads": threads, "n_threads_batch": threads, "verbose": False,
        "n_gpu_layers": 0 if device == "cpu" else -1,
    }  # fmt: skip
    if ":" in device:  # that GPU alone; llama.cpp would split the model over all
        model |= {"split_mode": _WHOLE, "main_gpu": int(device.partition(":")[2])}
    models = [{**model, "model_alias": TIMED, "logits_all": False}, {**model, "model_alias": SCORING, "logits_all": True}]
    return {"host": "127.0.0.1", "port": port, "interrupt_requests": False, "models": models}


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, key: str, log: Path, patience_s: float) -> None:
    import httpx

    deadline = time.monotonic() + patience_s
    with httpx.Client(headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=patience_s) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ModelError(f"llama-cpp-python's server ended as it started (exit code {process.returncode}{_last(log)})")
            try:
                if TIMED in client.get(f"{url}/models").text:
                    return
            except httpx.TransportError:
                pass
            time.sleep(_POLL_S)
    raise ModelError(f"llama-cpp-python's server did not answer within {patience_s:g} s{_last(log)}; free memory or cores")


def _last(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"; its last line was: {lines[-1][:300]}" if lines else ""


def main() -> None:
    """Run the server until the process that holds the other end of standard input ends."""
    config, buffers = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
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
    server.main()


def _end_with_parent() -> None:
    while os.read(0, 1):  # not through sys.stdin, whose lock would still be held when the server itself ends
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
