"""Plug-ins are found by scan and by entry point: a new one is one file."""

from __future__ import annotations

import importlib
import itertools
import sys
from typing import TYPE_CHECKING

import pytest

from quantbench.core.errors import UsageError
from quantbench.core.registry import Registry
from quantbench.core.scenario import Precision
from quantbench.methods import METHODS
from quantbench.metrics import METRICS
from quantbench.running.engines import ENGINES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


TOOL = "from quantbench.core.scenario import Precision\nfrom functools import partial\nTool = partial(Precision, bits=1)"
_numbers = itertools.count()


@pytest.fixture
def package() -> str:
    """A name that no other test imports."""
    return f"tools_{next(_numbers)}"


@pytest.fixture
def registry_of(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Mapping[str, str]], Registry[Precision]]:
    """A registry over ``package``, made of the given modules; their text may use ``Tool(name=...)``."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(modules: Mapping[str, str]) -> Registry[Precision]:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        for name, text in modules.items():
            (tmp_path / package / f"{name}.py").write_text(f"{TOOL}\n{text}\n")
        importlib.invalidate_caches()
        return Registry(package, Precision, "tool")

    return make


def _installed(folder: Path, group: str, points: Mapping[str, str]) -> None:
    """A distribution with entry points, as pip would leave it."""
    info = folder / f"{group}_extra-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {group}-extra\nVersion: 1.0\n")
    lines = [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    importlib.invalidate_caches()


def test_every_module_is_scanned_and_names_are_sorted(registry_of: Callable[..., Registry[Precision]]) -> None:
    registry = registry_of({"saw": "S = Tool(name='saw')", "more": "A = Tool(name='awl')\nB = Tool(name='bit')\nnoise = 3"})
    assert [tool.name for tool in registry] == ["awl", "bit", "saw"]
    assert registry["saw"] == Precision(name="saw", bits=1)
    assert "saw" in registry
    assert "hammer" not in registry


def test_modules_with_an_underscore_are_not_scanned(registry_of: Callable[..., Registry[Precision]]) -> None:
    assert not list(registry_of({"_helper": "H = Tool(name='helper')\nraise RuntimeError('never imported')"}))


def test_what_other_processes_will_need_is_imported_without_the_plug_ins(
    registry_of: Callable[..., Registry[Precision]], package: str, tmp_path: Path
) -> None:
    """A fork server does it: a plug-in may start threads or a device, which no fork survives."""
    registry = registry_of({"saw": "S = Tool(name='saw')", "_helper": "raise RuntimeError('never imported')"})
    (tmp_path / "hammers.py").write_text("raise RuntimeError('never imported')")
    _installed(tmp_path, package, {"hammer": "hammers:H"})

    registry.import_own()

    assert f"{package}.saw" in sys.modules
    assert "hammers" not in sys.modules


def test_unknown_names_get_the_nearest(registry_of: Callable[..., Registry[Precision]]) -> None:
    with pytest.raises(UsageError, match=r"^unknown tool 'hamer'; did you mean 'hammer'\?$"):
        registry_of({"h": "H = Tool(name='hammer')"})["hamer"]


def test_two_of_one_name_are_refused(registry_of: Callable[..., Registry[Precision]]) -> None:
    registry = registry_of({"one": "A = Tool(name='saw')", "two": "B = Tool(name='saw')"})
    with pytest.raises(UsageError, match=r"^two tools are named 'saw'; rename or uninstall one of them$"):
        list(registry)


def test_one_object_imported_by_two_modules_is_one(registry_of: Callable[..., Registry[Precision]]) -> None:
    registry = registry_of({"one": "A = Tool(name='saw')", "two": "from .one import A"})
    assert [tool.name for tool in registry] == ["saw"]


def test_entry_points_add_an_object_or_a_module(
    tmp_path: Path, package: str, registry_of: Callable[..., Registry[Precision]]
) -> None:
    registry = registry_of({"one": "A = Tool(name='saw')"})
    module = f"elsewhere_{next(_numbers)}"
    (tmp_path / f"{module}.py").write_text(f"{TOOL}\nONE = Tool(name='plane')\nTWO = Tool(name='file')\n")
    (tmp_path / f"{module}_single.py").write_text(f"{TOOL}\nONLY = Tool(name='vice')\nOTHER = Tool(name='not asked for')\n")
    _installed(tmp_path, package, {"whole": module, "single": f"{module}_single:ONLY"})
    assert [tool.name for tool in registry] == ["file", "plane", "saw", "vice"]


def test_a_broken_entry_point_is_named_and_the_others_work(
    tmp_path: Path, package: str, registry_of: Callable[..., Registry[Precision]]
) -> None:
    registry = registry_of({"one": "A = Tool(name='saw')"})
    module = f"elsewhere_{next(_numbers)}"
    (tmp_path / f"{module}_ends.py").write_text("raise SystemExit\n")
    (tmp_path / f"{module}_good.py").write_text(f"{TOOL}\nONLY = Tool(name='vice')\n")
    points = {"ends": f"{module}_ends", "gone": f"{module}_gone:ONLY", "good": f"{module}_good"}
    _installed(tmp_path, package, points)
    with pytest.warns(UserWarning, match="is left out") as caught:
        assert [tool.name for tool in registry] == ["saw", "vice"]
    ends, gone = f"ends = {module}_ends", f"gone = {module}_gone:ONLY"
    assert registry.broken == {
        ends: "SystemExit", gone: f"ModuleNotFoundError: No module named '{module}_gone'",
    }  # fmt: skip
    assert [repr(name) in str(warning.message) for name, warning in zip((ends, gone), caught, strict=True)] == [True, True]


def test_nothing_is_imported_before_it_is_asked_for(registry_of: Callable[..., Registry[Precision]]) -> None:
    registry = registry_of({"one": "raise RuntimeError('imported')"})
    with pytest.raises(RuntimeError, match="imported"):
        registry["saw"]


def test_the_methods_metrics_and_engines_of_this_package_are_found() -> None:
    assert {"torch", "bitsandbytes", "gguf"} <= {method.name for method in METHODS}
    assert {"latency", "load", "memory", "divergence", "text"} <= {metric.name for metric in METRICS}
    assert {"inline", "process"} <= {engine.name for engine in ENGINES}


def test_every_plug_in_says_what_it_is() -> None:
    for each in (*METHODS, *METRICS, *ENGINES):
        assert each.about, each.name
