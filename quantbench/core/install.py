"""How to install an extra of this package: the pip command that a user gets where something is missing.

No hint has an index asked for quantbench by its name: it is not published there, and what bears its name is another project.
"""

from __future__ import annotations

import json
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

_NAME = "quantbench"

_ORIGIN = "direct_url.json"
"""Where installers record what a distribution was installed from (PEP 610); missing if an index or no installer was asked."""

_REPOSITORY = "Repository, "
"""How the repository begins among the URLs of a package's metadata."""


def install_hint(extra: str) -> str:
    """How to add ``extra`` to this quantbench, such as ``pip install '.[gguf]' in a checkout of quantbench``.

    It names the repository that quantbench was installed from, else the one in its metadata, else a checkout. Folders and files
    of this machine are not named: reasons are stored with results, which others read.
    """
    try:
        found = distribution(_NAME)
    except PackageNotFoundError:  # run from its source, without being installed
        return _in_checkout(extra)
    origin = json.loads(found.read_text(_ORIGIN) or "{}")
    if place := _remote(origin) or ("" if origin else _repository(found)):
        return f"pip install '{_NAME}[{extra}] @ {place}'"
    return _in_checkout(extra, editable=origin.get("dir_info", {}).get("editable", False))


def _in_checkout(extra: str, *, editable: bool = False) -> str:
    return f"pip install {'-e ' if editable else ''}'.[{extra}]' in a checkout of {_NAME}"


def _remote(origin: dict[str, Any]) -> str:
    """The repository or archive that another installation can be made from as well; empty for what is on this machine."""
    url: str = origin.get("url", "")
    if url.startswith("file:"):
        return ""
    if control := origin.get("vcs_info"):
        revision = control.get("requested_revision")
        return f"{control['vcs']}+{url}" + (f"@{revision}" if revision else "")
    return url


def _repository(found: Distribution) -> str:
    urls: list[str] = found.metadata.get_all("Project-URL") or []
    return next((f"git+{each.removeprefix(_REPOSITORY)}" for each in urls if each.startswith(_REPOSITORY)), "")
