"""What a checkpoint folder may consist of: its own files, and nothing that another file of the user's is read through.

A folder from elsewhere, unpacked or cloned, may hold links and an index that names files. What is read through them would end
up in results and in written models, which people publish.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantbench.core.errors import ModelError

ADAPTER = "adapter_config.json"
"""What peft writes beside weights that are added to those of another model."""

_CODE = "auto_map"
"""The key by which configurations name classes of their own, in a file beside them or anywhere else."""

_WEIGHTS = ".safetensors"
_SNAPSHOTS, _BLOBS = "snapshots", "blobs"
"""In the hub's cache: folders whose files are links, and what these lead to."""


def require_own(folder: Path, weights: Sequence[Path]) -> None:
    """Raise ModelError unless ``weights``, as its index names them, and everything else in ``folder`` are its own.

    A link may lead out of the folder to a file of the same name, as in folders of links, or to where the hub's cache keeps
    contents. Weights may be anywhere: their header is checked before anything is read, and they are never copied.
    """
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"{folder} holds an adapter ({ADAPTER}), which transformers would add to the weights; merge it, or remove that file"
        )
    place = Path(os.path.normpath(folder))
    for path in weights:
        if path.suffix != _WEIGHTS or not Path(os.path.normpath(path)).is_relative_to(place):
            raise ModelError(f"the index in {folder} names {path}, no {_WEIGHTS} file of that folder; download it again")
    home = folder.resolve()
    for path in sorted(each for each in folder.iterdir() if each.is_symlink() and each not in weights):
        target = Path(os.path.realpath(path))
        if target.exists() and not (target.is_relative_to(home) or target.name == path.name or _is_blob(target, home)):
            raise ModelError(
                f"{path} is a link to {target}, outside of the checkpoint and of another name, so another file of yours would "
                "be read as a part of the model; put a copy in its place if that is meant"
            )


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, and those inside it, without the classes that they name: whoever trusts a model would import these."""
    kept = {key: value for key, value in config.items() if key != _CODE}
    return {key: without_code(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def _is_blob(target: Path, home: Path) -> bool:
    """Whether ``target`` is where the hub's cache keeps the contents of the snapshot ``home``."""
    return home.parent.name == _SNAPSHOTS and target.parent == home.parents[1] / _BLOBS
