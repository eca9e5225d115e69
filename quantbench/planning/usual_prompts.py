"""The prompt set of a model for which nobody named one."""

from __future__ import annotations

from pathlib import Path

from quantbench.core.errors import ModelError
from quantbench.core.outside import exists, expanded
from quantbench.models import MODELS, is_dummy, is_server
from quantbench.runtimes import has_template

PLAIN = "mixed"
CHAT = "chat"


def usual_prompts(model: str) -> str:
    """CHAT for a model whose chat template is on this machine, else PLAIN.

    A hub id is not looked for in the hub's cache, and the network is not asked: the rows of a command would have other ids once
    the model has been downloaded. ``unseen`` says what to do. A dummy has the tokenizer of the canary, which has no template.
    """
    path = _place(model)
    try:
        return CHAT if path and has_template(path) else PLAIN
    except ModelError:  # a damaged model's rows say why
        return PLAIN


def unseen(model: str) -> str:
    """A sentence about a model that may have a chat template, though none can be seen yet; empty if it is on this machine."""
    if model in MODELS or is_dummy(model) or is_server(model) or _place(model):
        return ""
    return f"{model} gets the prompts {PLAIN}; if it is a chat model, add --prompts {CHAT}"


def _place(model: str) -> Path | None:
    """Where a model is on this machine; None for what is not here, and for what has no tokenizer of its own."""
    if model in MODELS:
        return None if MODELS[model].module else MODELS[model].folder()
    if is_dummy(model) or is_server(model):
        return None
    path = expanded(model)
    return path if exists(path) else None
