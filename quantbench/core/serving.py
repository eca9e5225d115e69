"""How ``--server`` names a server that quantbench starts itself: ``KIND[/PRECISION][:FLAGS]``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from quantbench.core.errors import UsageError

LLAMA_CPP_PYTHON, LLAMA_SERVER, VLLM = "gguf", "llama-server", "vllm"
FORM = "KIND[/PRECISION][:FLAGS]"

_KINDS: Mapping[str, tuple[str, ...]] = {
    LLAMA_CPP_PYTHON: (),
    LLAMA_SERVER: ("--host", "--port", "--model", "-m", "--model-url", "-mu", "--hf-repo", "-hf", "--alias", "-a", "--api-key",
                   "--api-key-file"),
    VLLM: ("--host", "--port", "--model", "--served-model-name", "--api-key", "--trust-remote-code"),
}  # fmt: skip
"""The kinds of server, with the flags that are not the user's to give: what is served, where, and to whom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedServer:
    """A server to start: ``kind`` is one of the three names above; ``precision`` is empty if none was named."""

    kind: str
    precision: str
    flags: tuple[str, ...]


def parse_started(text: str) -> StartedServer | None:
    """Read ``KIND[/PRECISION][:FLAGS]``, FLAGS as a shell would; None where ``text`` names no such kind.

    UsageError for a precision that is no word, for flags that cannot be split, and for those that quantbench sets itself.
    """
    head, colon, rest = text.partition(":")
    kind, slash, precision = head.partition("/")
    if kind not in _KINDS:
        return None
    if slash and not re.fullmatch(r"[\w.+-]+", precision):
        raise UsageError(f"server {text!r} names no precision after the slash; write {kind}/q8_0, or another, or no slash")
    try:
        flags = tuple(shlex.split(rest))
    except ValueError as error:
        raise UsageError(f"the flags of server {text!r} cannot be read ({error}); quote them as for a shell") from error
    if colon and not (rest.startswith("-") and rest.isprintable()):
        raise UsageError(f"server {text!r} has no flags after the colon; write {kind}:--flag, or a URL such as http://HOST:PORT/v1")
    if flags and kind == LLAMA_CPP_PYTHON:
        raise UsageError(f"server {text!r} has flags, which llama-cpp-python's server does not take; use llama-server")
    for flag in flags:
        name = flag.partition("=")[0].replace("_", "-")
        if any(name == own or (len(name) > 2 and name.startswith("--") and own.startswith(name)) for own in _KINDS[kind]):
            raise UsageError(f"server {kind!r} cannot be given {name}, which quantbench sets itself or never allows; remove it")
    return StartedServer(kind=kind, precision=precision, flags=flags)
