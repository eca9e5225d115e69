"""Endpoints that speak the protocol of OpenAI, wherever they run."""

from __future__ import annotations

from quantbench.runtimes import Runtime

ENDPOINT = Runtime(
    name="endpoint", about="a server that speaks the protocol of OpenAI; its memory is its own", packages=("httpx",)
)
