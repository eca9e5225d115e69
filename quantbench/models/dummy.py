"""Dummies: a real architecture with random, seeded weights, to measure memory and latency without a download.

A dummy is a folder without weights: a configuration, a tokenizer and the shapes of its parameters. Methods make the weights
while they load, or write them in their own packed format.

A child process adds the shapes, so that making a dummy does not import torch into this one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

from quantbench.core.cache import artifact, file_sha256, made_by
from quantbench.core.children import answer
from quantbench.core.errors import MissingDependency, ModelError
from quantbench.core.install import install_hint
from quantbench.core.job import Checkpoint
from quantbench.core.machine import versions
from quantbench.core.scenario import DUMMY_PREFIX
from quantbench.models import MODELS, meta
from quantbench.models.config import CONFIG, config_file, read_model_config
from quantbench.models.meta import build, call_transformers, plain
from quantbench.models.pool import SEED

RECIPE = 2
"""Version of what a dummy is, including its weights. It is part of the content hash, by which rows of two runs are paired."""

SHAPES = "shapes.json"
"""Shapes of all parameters by transformers' names; tied ones are listed once."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
_TOKENIZER_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
_TOKENIZER_SIZE = 2048
_MAKERS = ("torch", "transformers")
_SOURCE = "quantbench.models.dummy"


def make_dummy(name: str) -> Checkpoint:
    """The checkpoint behind ``dummy:NAME_OR_CONFIG``, made on first use and kept in the cache.

    Its tokenizer is the canary's, which encodes any text with the first 2048 ids. Raises ModelError for a configuration that
    cannot be used.
    """
    missing = [each for each in _MAKERS if find_spec(each) is None]
    if missing:
        raise MissingDependency(f"model {name!r} needs {', '.join(missing)}, not installed; {install_hint('torch')}")
    source = config_file(name.removeprefix(DUMMY_PREFIX))
    config = {**plain(read_model_config(source)), **_TOKENIZER_IDS}
    canary = MODELS["canary"].folder()
    asked: dict[str, object] = {
        "config": config, "seed": SEED, "recipe": RECIPE,
        "tokenizer": [file_sha256(canary / each) for each in _TOKENIZER_FILES],
    }  # fmt: skip
    makers = versions(_MAKERS)

    def make(folder: Path) -> None:
        (folder / CONFIG).write_text(json.dumps(config))
        for each in _TOKENIZER_FILES:
            shutil.copyfile(canary / each, folder / each)
        call_transformers(_SOURCE, [str(folder), str(source)], source)

    content = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    folder = artifact("dummy", {**asked, "versions": makers, "made_by": made_by(_SOURCE, meta.__name__)}, make)
    return Checkpoint(name=name, kind="hf", path=folder, revision=f"seed {SEED}", content_hash=content, random_weights=True)


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a dummy's parameters by name."""
    shapes: dict[str, list[int]] = json.loads((folder / SHAPES).read_text())
    return {name: tuple(shape) for name, shape in shapes.items()}


def write_shapes(folder: Path, source: str) -> None:
    """Write, beside config.json in ``folder``, the shapes of the model it describes; rewrite it as transformers saves it.

    No weights are made. ``source`` names the configuration in messages.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    vocabulary = config.get_text_config().vocab_size
    if vocabulary < _TOKENIZER_SIZE:
        raise ModelError(
            f"{source} has a vocabulary of {vocabulary}, but a dummy's prompts are encoded with {_TOKENIZER_SIZE} ids; "
            f"set vocab_size to {_TOKENIZER_SIZE} or more"
        )
    model = build(config)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    (folder / SHAPES).write_text(json.dumps({name: list(each.shape) for name, each in model.named_parameters()}))


if __name__ == "__main__":
    answer(lambda request: write_shapes(Path(request[0]), request[1]))
