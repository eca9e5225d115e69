"""A matrix file: what stands in it, and one clear sentence for whatever is wrong there.

An example::

    models = ["canary"]
    prompts = ["mixed"]                   # unless given, the usual set of each model
    control = true                        # the reference measured once more
    probes = ["gguf/q4_k_m"]              # the variants that are probed; all unless given
    energy = false                        # do not answer again to count energy

    [methods]
    torch = ["fp32", "bf16"]
    gguf = ["q4_k_m", "q8_0"]

    [artifacts]                           # published quantizations of the one model
    theirs = "ORG/REPO-GGUF:Q4_K_M"       # a folder, a .gguf file or a hub id

    [conditions]                          # optional: any field of Conditions
    output_tokens = 32                    # unless given, 128 on a GPU
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from quantbench import models
from quantbench.core.errors import MatrixError, UsageError, unknown_name
from quantbench.core.outside import parse_toml, read_text
from quantbench.core.scenario import Conditions, Variant
from quantbench.core.text import quoted
from quantbench.methods import METHODS
from quantbench.planning.matrix import Matrix, default_matrix, with_artifacts

_KEYS = {
    "models": list, "prompts": list, "control": bool, "probes": list, "energy": bool, "methods": dict, "artifacts": dict,
    "conditions": dict,
}
_NAMES = ("models", "prompts", "probes")
"""Keys that list names."""

_MOST_BYTES = 2**18
"""A file of a thousand artifacts has a fifth of it, and a key of as many parts takes tomllib minutes beyond."""


def read_matrix(path: Path) -> Matrix:
    """Read a matrix file. MatrixError names the file and the line or key of whatever is wrong in it."""
    body = _body(path)
    default = default_matrix()
    matrix = Matrix(
        models=tuple(body.get("models", default.models)),
        prompts=tuple(body.get("prompts", default.prompts)),
        variants=_variants(path, body["methods"]) if "methods" in body else () if "artifacts" in body else default.variants,
        control=body.get("control", True),
        conditions=_conditions(path, body["conditions"]) if "conditions" in body else default.conditions,
        given=frozenset(body.get("conditions", {})),
        source=str(path),
        probes=_probes(path, body["probes"]) if "probes" in body else None,
        energy=body.get("energy", True),
        for_builtin="methods" not in body or ("models" in body and all(name in models.MODELS for name in body["models"])),
    )
    try:
        return with_artifacts(matrix, _artifacts(path, body["artifacts"]), alone=False) if "artifacts" in body else matrix
    except UsageError as error:
        raise MatrixError(f"matrix file {path}, key 'artifacts': {error}") from error


def _body(path: Path) -> Mapping[str, Any]:
    """What the file says, each key of its own kind."""
    try:
        body = parse_toml(read_text(path, most=_MOST_BYTES))
    except FileNotFoundError as error:
        raise MatrixError(f"matrix file {path} does not exist; give a TOML file with --matrix") from error
    except OSError as error:
        raise MatrixError(f"matrix file {path} cannot be read ({error.strerror}); give a TOML file with --matrix") from error
    except ValueError as error:
        raise MatrixError(f"matrix file {path} is not valid TOML: {error}") from error
    for key, value in body.items():
        if key not in _KEYS:
            raise MatrixError(f"matrix file {path}: {unknown_name('key', key, _KEYS)}")
        if not isinstance(value, _KEYS[key]):
            raise MatrixError(f"matrix file {path}, key {key!r}: expected a {_KEYS[key].__name__}, found {quoted(value)}")
    if body.get("prompts") == []:
        raise MatrixError(f"matrix file {path}, key 'prompts': it is empty; name a prompt set such as 'mixed', or leave it out")
    for key in _NAMES:
        if not all(isinstance(name, str) for name in body.get(key, [])):
            raise MatrixError(f"matrix file {path}, key {key!r}: expected a list of names, found {quoted(body[key])}")
    return body


def _variants(path: Path, table: Mapping[str, Any]) -> tuple[Variant, ...]:
    variants = []
    for name, precisions in table.items():
        if not isinstance(precisions, list) or not all(isinstance(each, str) for each in precisions):
            found = quoted(precisions)
            raise MatrixError(f"matrix file {path}, key 'methods.{name}': expected a list of precisions, found {found}")
        try:
            variants += [Variant(method=name, precision=METHODS[name].precision(each).name) for each in precisions]
        except UsageError as error:
            raise MatrixError(f"matrix file {path}, key 'methods.{name}': {error}") from error
    return tuple(variants)


def _artifacts(path: Path, table: Mapping[str, Any]) -> list[str]:
    """Each artifact as on the command line."""
    for name, place in table.items():
        if not isinstance(place, str):
            found = quoted(place)
            raise MatrixError(f"matrix file {path}, key 'artifacts.{name}': expected where its files are, found {found}")
    return [f"{name}={place}" for name, place in table.items()]


def _probes(path: Path, names: Sequence[str]) -> frozenset[str]:
    for name in names:
        method, _, precision = name.partition("/")
        try:
            METHODS[method].precision(precision)
        except UsageError as error:
            raise MatrixError(f"matrix file {path}, key 'probes': {error}") from error
    return frozenset(names)


def _conditions(path: Path, table: Mapping[str, Any]) -> Conditions:
    known = {each.name: type(each.default) for each in fields(Conditions)}
    for key, value in table.items():
        if key not in known:
            raise MatrixError(f"matrix file {path}: {unknown_name('key', key, known)}")
        if type(value) is not known[key]:
            wanted = known[key].__name__
            raise MatrixError(f"matrix file {path}, key 'conditions.{key}': expected {wanted}, found {quoted(value)}")
    try:
        return Conditions(**table)
    except UsageError as error:
        raise MatrixError(f"matrix file {path}: {error}") from error
