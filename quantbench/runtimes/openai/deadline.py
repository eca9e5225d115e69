"""Gives an httpx request a deadline, however slowly its bytes arrive.

httpx's read timeout starts anew with each byte received, in headers and body alike, so a server that sends one byte a second
would hold a request for hours. Here every read of a socket waits no longer than what is left of the request's time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

_ENDS: ContextVar[float | None] = ContextVar("ends", default=None)
"""When this thread's request must be over, by ``time.monotonic``."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """A request made in this block and thread, by a client passed to ``bound``, ends after at most ``seconds``."""
    token = _ENDS.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _ENDS.reset(token)


def is_over() -> bool:
    """Whether the time of ``within`` is used up."""
    ends = _ENDS.get()
    return ends is not None and time.monotonic() >= ends


def bound(client: httpx.Client) -> None:
    """Make the client's connections, through proxies too, keep to the time of ``within``.

    httpx has no public way to hand its pools another network backend; a pool without one of this name is left as it is.
    """
    for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001 - see above
        pool: Any = getattr(transport, "_pool", None)
        if hasattr(pool, "_network_backend"):
            pool._network_backend = _Backend(pool._network_backend)  # noqa: SLF001 - see above


class _Backend:
    """An httpcore.NetworkBackend whose streams keep to the time that is left."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def connect_tcp(self, *args: Any, **kwargs: Any) -> _Stream:
        return _Stream(self._inner.connect_tcp(*args, **kwargs))

    def connect_unix_socket(self, *args: Any, **kwargs: Any) -> _Stream:
        return _Stream(self._inner.connect_unix_socket(*args, **kwargs))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream:
    """An httpcore.NetworkStream whose reads keep to the time that is left."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        read: bytes = self._inner.read(max_bytes, timeout=_left(timeout))
        return read

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, timeout=_left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(self, *args: Any, **kwargs: Any) -> _Stream:
        return _Stream(self._inner.start_tls(*args, **kwargs))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _left(timeout: float | None) -> float | None:
    """Seconds that one read or write may take; raises httpcore's timeout if the request's time is over."""
    import httpcore

    ends = _ENDS.get()
    if ends is None:
        return timeout
    seconds = ends - time.monotonic()
    if seconds <= 0:
        raise httpcore.ReadTimeout("the request's time is over")
    return seconds if timeout is None else min(timeout, seconds)
