"""Chat templates of a GGUF file, which llama-cpp-python compiles as it opens the file; nothing here has it use them.

jinja2 computes constants as it compiles, and nothing bounds what that takes: ``models.rendered`` has limits, this library none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Unread:
    """Stands for llama-cpp-python's formatter of a template."""

    def __init__(self, **_: Any) -> None:
        """Nothing is compiled."""

    def to_chat_handler(self) -> None:
        """None, which nobody calls."""


@contextmanager
def unread() -> Iterator[None]:
    """Inside this context llama-cpp-python opens files without compiling their templates."""
    import llama_cpp.llama_chat_format as library

    compiles = library.Jinja2ChatFormatter
    library.Jinja2ChatFormatter = _Unread
    try:
        yield
    finally:
        library.Jinja2ChatFormatter = compiles
