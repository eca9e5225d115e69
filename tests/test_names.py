"""A leading underscore means private to its folder, and imports run in no circle: read from the source text."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted((ROOT / "quantbench").rglob("*.py"))}


def _imports(path: Path) -> Iterator[str]:
    """Dotted names of quantbench that are imported anywhere in a file; of ``from a import b`` always a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "quantbench")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or ROOT / "tests" in path.parents, f"{path}: relative imports hide the floor"
            if node.level == 0 and node.module and node.module.split(".")[0] == "quantbench":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _owner(imported: str) -> str:
    """Where a private name is at home: the folder of a private module, the module of any other; empty where none is private."""
    parts = imported.split(".")
    private = next((index for index, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")), 0)
    return ".".join(parts[:private])


def _is_outside(importer: str, imported: str) -> bool:
    owner = _owner(imported)
    return bool(owner) and not f"{importer}.".startswith(f"{owner}.")


def test_what_is_private_is_imported_in_its_own_folder_only() -> None:
    others = {str(path.relative_to(ROOT)): path for name in ("tests", "bench") for path in (ROOT / name).rglob("*.py")}
    outside = [
        f"{importer} imports {imported}"
        for importer, path in {**MODULES, **others}.items()
        for imported in _imports(path)
        if _is_outside(importer, imported)
    ]
    assert outside == []


def test_imports_run_in_no_circle() -> None:
    """Those under TYPE_CHECKING and inside functions count too."""
    graph = {
        name: {imported if imported in MODULES else imported.rpartition(".")[0] for imported in _imports(path)} - {name}
        for name, path in MODULES.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
