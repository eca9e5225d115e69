"""The libraries of the extra ``report``: checked before any work starts, and the JavaScript that they ship."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from quantbench.core.cache import recall, remember
from quantbench.core.errors import MissingDependency
from quantbench.core.install import install_hint

if TYPE_CHECKING:
    from collections.abc import Mapping

_NEEDED: Mapping[str, str] = {"vl_convert": "vl-convert-python", "jinja2": "jinja2"}
_SNIPPET = "window.vegaEmbed = vegaEmbed;"


def require() -> None:
    """Raise MissingDependency unless everything that a report needs is installed."""
    missing = [package for module, package in _NEEDED.items() if not find_spec(module)]
    if missing:
        raise MissingDependency(f"a report needs {', '.join(missing)}, not installed; {install_hint('report')}")


@cache
def javascript() -> str:
    """Vega, Vega-Lite and vega-embed as one program that sets ``window.vegaEmbed``; kept in the cache: it takes seconds."""
    asked = {"vl-convert": version("vl-convert-python"), "snippet": _SNIPPET}
    kept = recall("javascript", asked)
    if isinstance(kept, str):
        return kept
    import vl_convert

    made: str = vl_convert.javascript_bundle(_SNIPPET)
    remember("javascript", asked, made)
    return made


def as_svg(spec: Mapping[str, Any]) -> str:
    """A Vega-Lite chart as SVG, without a browser and without the network."""
    import vl_convert

    drawn: str = vl_convert.vegalite_to_svg(dict(spec), allowed_base_urls=[])
    return drawn


def as_png(svg: str) -> bytes:
    """A picture with a pixel for each of its units."""
    import vl_convert

    drawn: bytes = vl_convert.svg_to_png(svg, scale=1)
    return drawn
