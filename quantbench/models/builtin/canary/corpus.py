"""The canary's training text: the Python interpreter's own documentation.

Language reference topics, docstrings and comment blocks of the standard library, read from the running interpreter in a
fixed order, so that the same interpreter version gives the same text (the model card records its SHA-256).
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path

MIN_CHARACTERS = 120
"""Shorter fragments teach little beyond their own words."""

EXCLUDED = ("site-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3")
BUILTIN_MODULES = ("builtins", "sys", "math", "itertools", "time", "posix", "array", "_socket", "_io", "_struct", "zlib")
HELD_OUT_EVERY = 25


def documents() -> list[str]:
    """All documents of the corpus, in a fixed order, without repeats."""
    seen: set[str] = set()
    kept = []
    for text in (*_topics(), *_builtin_docstrings(), *_library()):
        cleaned = re.sub(r"[ \t]+\n", "\n", text).strip()
        if len(cleaned) >= MIN_CHARACTERS and cleaned.isascii() and cleaned not in seen:
            seen.add(cleaned)
            kept.append(cleaned)
    return kept


def split(texts: list[str]) -> tuple[list[str], list[str]]:
    """Training and held-out documents: every ``HELD_OUT_EVERY``-th is held out."""
    held_out = texts[::HELD_OUT_EVERY]
    training = [text for index, text in enumerate(texts) if index % HELD_OUT_EVERY]
    return training, held_out


def _topics() -> Iterator[str]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    for name in sorted(topics):
        yield topics[name]


def _builtin_docstrings() -> Iterator[str]:
    for module_name in BUILTIN_MODULES:
        module = importlib.import_module(module_name)
        for name in sorted(vars(module)):
            owner = getattr(module, name)
            parts = [f"{name}: {inspect.getdoc(owner) or ''}"]
            if inspect.isclass(owner) and owner is not builtins.object:
                for member, function in sorted(vars(owner).items()):
                    text = inspect.getdoc(function) if callable(function) else None
                    if text and not member.startswith("__"):
                        parts.append(f"{name}.{member}: {text}")
            yield "\n\n".join(parts)


def _library() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not set(path.relative_to(root).parts) & set(EXCLUDED) and "pydoc_data" not in path.parts:
            yield from _source_documents(path)


def _source_documents(path: Path) -> Iterator[str]:
    """One document of all docstrings in a file, and one of its comment blocks."""
    try:
        with tokenize.open(path) as stream:
            source = stream.read()
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):
        return
    docstrings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                docstrings.append(_signature(node) + text)
    yield "\n\n".join(docstrings)
    blocks = re.findall(r"(?:^[ \t]*#.*\n){3,}", source, flags=re.MULTILINE)
    yield "\n\n".join(re.sub(r"^#+ ?", "", textwrap.dedent(block), flags=re.MULTILINE).strip() for block in blocks)


def _signature(node: ast.AST) -> str:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return f"def {node.name}({ast.unparse(node.args)}):\n"
        case ast.ClassDef():
            return f"class {node.name}:\n"
        case _:
            return ""
