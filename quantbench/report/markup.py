"""From untrusted text to markup: everything that a report shows passes through here and stays text.

This holds for model output, errors and model names. Characters that are invisible or mislead the eye (NUL, escapes, direction
overrides, U+2028) are shown as escapes, and markup is escaped by jinja2.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from quantbench.core.text import visible

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def data_block(value: Any) -> Markup:
    """``value`` as JSON inside a script element: ASCII only, and without a character that could end the element."""
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def script(text: str) -> Markup:
    """A script or style of this package or its libraries, so that it cannot end its own element."""
    from markupsafe import Markup

    safe = text.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script").replace("<!--", "\\x3c!--")
    return Markup(safe)  # noqa: S704 - the libraries' and our own code # nosec B704


def digest(text: str) -> str:
    """The source expression that lets a content security policy accept exactly this script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def template(name: str) -> str:
    """The text of a file of this package."""
    return (files("quantbench.report") / name).read_text(encoding="utf-8")


def fill(name: str, context: Mapping[str, Any]) -> str:
    """A template of this package; in a page or picture everything in ``context`` is escaped."""
    text: str = _environment().get_template(name).render(context)
    return text


def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined, select_autoescape
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    return Environment(
        loader=FunctionLoader(template),
        autoescape=select_autoescape(enabled_extensions=("html", "svg"), default=False),
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
