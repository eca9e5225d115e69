"""A module imports only from lower floors, and nothing heavy when it is imported: read from the source text."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "quantbench"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
LAYERS = [
    [name.strip() for name in line.split("|")]
    for contract in SETTINGS["importlinter"]["contracts"]
    if contract["type"] == "layers"
    for line in contract["layers"]
]
BANNED = SETTINGS["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"]


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = [name for name in FILES if name != "quantbench"]


def _imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that are imported anywhere in ``tree``; of ``from a import b`` both a.b and, if that is no module, a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else str(node.module)


def _run_on_import(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that are executed when the module is imported, those under ``if TYPE_CHECKING`` left out."""
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from _run_on_import(statement.orelse)
            continue
        blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
        blocks += [handler.body for handler in getattr(statement, "handlers", [])]
        if any(blocks):
            for block in blocks:
                yield from _run_on_import(block)
        else:
            yield statement


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def _floor(module: str) -> tuple[int, str] | None:
    """The layer's number, from the top, and the member of it that ``module`` belongs to."""
    for number, members in enumerate(LAYERS):
        for member in members:
            if module == member or module.startswith(f"{member}."):
                return number, member
    return None


def test_every_module_stands_on_a_floor() -> None:
    assert [module for module in MODULES if not _floor(module)] == [], "in no layer of [tool.importlinter]"


def test_every_floor_has_a_module() -> None:
    members = [member for layer in LAYERS for member in layer]
    assert [member for member in members if member not in FILES] == []
    assert len(set(members)) == len(members)


def test_no_module_imports_its_own_or_a_higher_floor() -> None:
    wrong = []
    for module in MODULES:
        own = _floor(module)
        assert own is not None
        for imported in _imports(TREES[module]):
            other = _floor(imported)
            if other and other[1] != own[1] and other[0] <= own[0]:
                wrong.append(f"{module} (layer {own[0]}) imports {imported} (layer {other[0]})")
    assert wrong == []


def test_no_module_imports_anything_heavy_at_its_top() -> None:
    heavy = []
    for module in FILES:
        statements = ast.Module(body=list(_run_on_import(TREES[module].body)), type_ignores=[])
        banned = [name for name in _imports(statements) if any(name == ban or name.startswith(f"{ban}.") for ban in BANNED)]
        heavy += [f"{module} imports {name}" for name in banned]
    assert heavy == []


def test_what_must_stay_out_is_banned() -> None:
    assert {"torch", "transformers", "llama_cpp", "bitsandbytes", "gguf", "pandas", "pyarrow", "numpy", "scipy"} <= set(BANNED)


if find_spec("importlinter"):

    def test_import_linter_agrees() -> None:
        """Where it is installed; ``tox -e floors`` always runs it."""
        script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
