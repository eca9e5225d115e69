"""How a user gets what is missing: never by the bare name, under which an index has another project."""

from __future__ import annotations

import json
import re
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

import pytest

from quantbench.core import install
from quantbench.core.install import install_hint

ROOT = Path(__file__).parents[1]
CHECKOUT = "pip install '.[gguf]' in a checkout of quantbench"
REPOSITORY = "https://example.org/group/quantbench"
BY_NAME = re.compile(r"pip install (?:-\S+ )*[\"']?quantbench\b(?!\[[\w,{}]+\] @ )")
"""A pip command that asks an index for quantbench."""


class Installed(Distribution):
    """A quantbench with that record of its origin, if any, and those URLs."""

    def __init__(self, origin: object, *urls: str) -> None:
        self._files = {
            "METADATA": "\n".join(["Name: quantbench", "Version: 0", *(f"Project-URL: {url}" for url in urls)]),
            **({"direct_url.json": json.dumps(origin)} if origin else {}),
        }

    def read_text(self, filename: str) -> str | None:
        return self._files.get(filename)

    def locate_file(self, path: object) -> Path:
        raise NotImplementedError


def _hint(monkeypatch: pytest.MonkeyPatch, origin: object, *urls: str) -> str:
    monkeypatch.setattr(install, "distribution", lambda _: Installed(origin, *urls))
    return install_hint("gguf")


@pytest.mark.parametrize(
    ("origin", "hint"),
    [
        ({"url": "file:///home/a/quantbench", "dir_info": {}}, CHECKOUT),
        ({"url": "file:///home/a/quantbench", "dir_info": {"editable": True}}, CHECKOUT.replace("install", "install -e", 1)),
        ({"url": "file:///tmp/quantbench-0.1.0-py3-none-any.whl", "archive_info": {}}, CHECKOUT),
        (
            {"url": REPOSITORY, "vcs_info": {"vcs": "git", "requested_revision": "v1", "commit_id": "0" * 40}},
            f"pip install 'quantbench[gguf] @ git+{REPOSITORY}@v1'",
        ),
        (
            {"url": REPOSITORY, "vcs_info": {"vcs": "git", "commit_id": "0" * 40}},
            f"pip install 'quantbench[gguf] @ git+{REPOSITORY}'",
        ),
        (
            {"url": f"{REPOSITORY}/main.zip", "archive_info": {"hash": "sha256=0"}},
            f"pip install 'quantbench[gguf] @ {REPOSITORY}/main.zip'",
        ),
        (None, CHECKOUT),
    ],
)
def test_what_is_missing_comes_from_where_quantbench_came_from(
    origin: object, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _hint(monkeypatch, origin) == hint


def test_without_a_record_the_repository_in_the_metadata_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    urls = ("Documentation, https://example.org/docs", f"Repository, {REPOSITORY}")
    assert _hint(monkeypatch, None, *urls) == f"pip install 'quantbench[gguf] @ git+{REPOSITORY}'"
    assert _hint(monkeypatch, {"url": "file:///home/a", "dir_info": {}}, *urls) == CHECKOUT


def test_source_that_is_not_installed_has_a_hint_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> Distribution:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(install, "distribution", unknown)
    assert install_hint("gguf") == CHECKOUT


def test_nowhere_is_quantbench_asked_of_an_index() -> None:
    for wrong in ("quantbench", '--no-cache-dir "quantbench[all,tested]"', "'quantbench[gguf]'"):
        assert BY_NAME.search(f"pip install {wrong}")
    for right in ("'.[gguf]' in a checkout of quantbench", '"quantbench[all,tested] @ git+URL"'):
        assert not BY_NAME.search(f"pip install {right}")
    texts = [ROOT / "README.md", ROOT / "pyproject.toml", *(ROOT / ".github").rglob("*.md")]
    for folder, ending in (("docs", "*.md"), ("quantbench", "*.py"), ("bench", "*.py"), ("bench", "*.md"), ("results", "*.md")):
        texts += (ROOT / folder).rglob(ending)
    asked = {str(path): BY_NAME.findall(path.read_text(encoding="utf-8")) for path in texts}
    assert {path: lines for path, lines in asked.items() if lines} == {}
