"""Configurations by name: built-in ones, a local config.json, or that of a hub repository; no weights are read."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from quantbench.core.errors import MissingDependency, ModelError, UsageError, unknown_name
from quantbench.core.outside import exists, expanded, parse_json, read_text
from quantbench.core.scenario import DUMMY_PREFIX
from quantbench.models import MODELS, architecture, dummy_configs, is_hub_id, is_module, is_server, looks_like_path
from quantbench.models._header_shapes import header_shapes
from quantbench.models.architecture import Architecture, Config
from quantbench.models.architecture.shapes import from_shapes
from quantbench.models.hub import download_config
from quantbench.models.meta import meta_shapes

CONFIG = "config.json"


def read_architecture(name: str, *, any_age: bool = False) -> Architecture:
    """The architecture of the model ``name``: a built-in one, with ``dummy:`` or not, a folder, a config.json, or a hub id.

    Llama and models that share its code have a family here. Any other model type has the shapes of transformers' own module,
    else those of the safetensors beside its config.json; if neither is available it is counted as a Llama. ``any_age``: for a
    hub id, accept the configuration in the hub's own cache. Raises UsageError for a name that can be none of these, ModelError
    for a configuration that cannot be fetched or read.
    """
    source = config_file(name.removeprefix(DUMMY_PREFIX), any_age=any_age)
    body = read_model_config(source)
    if architecture.is_known(body):
        return architecture.read(body, name, str(source))
    architecture.require_decoder(Config(body, str(source)), body["model_type"])
    reasons = []
    for shapes_of in (partial(meta_shapes, body), partial(header_shapes, source, body)):
        try:
            return from_shapes(body, name, str(source), shapes_of())
        except ModelError as error:
            reasons.append(str(error))
    return architecture.read(body, name, str(source), why="; ".join(reasons))


def config_file(wanted: str, *, any_age: bool = False) -> Path:
    """The config.json of a model; one on the hub is downloaded, unless ``any_age`` accepts a cached one."""
    if not wanted.strip():
        raise UsageError("the model's name is empty; give a built-in name, a config.json, a folder, a .gguf file or a hub id")
    if wanted in dummy_configs():
        return dummy_configs()[wanted]
    if wanted in MODELS and MODELS[wanted].module is None:
        return MODELS[wanted].folder() / CONFIG
    if looks_like_path(wanted) or wanted.endswith(".json"):
        path = expanded(wanted).absolute()
        if not exists(path):
            raise UsageError(f"path {wanted!r} does not exist; give a config.json, a folder that holds one, or a .gguf file")
        return path / CONFIG if path.is_dir() else path
    if is_module(wanted) or is_server(wanted):
        kind = "a module without tokens" if is_module(wanted) else "a server"
        raise UsageError(f"model {wanted!r} is {kind} and has no config.json; give a model that has one")
    if not is_hub_id(wanted):
        raise unknown_name("model", wanted, [*dummy_configs(), *(each.name for each in MODELS if each.module is None)])
    try:
        return download_config(wanted, any_age=any_age)
    except (ModelError, MissingDependency) as error:
        raise type(error)(f"{error}; or give the path of its config.json, which is enough") from error


def read_config(path: Path) -> dict[str, Any]:
    """The contents of a config.json, or of the one in a folder. ModelError if it does not exist or is not a JSON object."""
    path = path / CONFIG if path.is_dir() else path
    try:
        body = parse_json(read_text(path))
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist; give a config.json as save_pretrained writes it") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}); download or copy it again") from error
    if not isinstance(body, dict):
        raise ModelError(f"{path} does not hold a JSON object; download or copy it again")
    return body


def read_model_config(path: Path) -> dict[str, Any]:
    """The same; ModelError also if it names no model type."""
    body = read_config(path)
    if not isinstance(body.get("model_type"), str):
        raise ModelError(f"{path} names no model_type, so it is not a model's config.json; give one that save_pretrained wrote")
    return body
