"""Downloads from the hub: the files of a checkpoint, or one GGUF file of a repository that holds many."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from quantbench.core.errors import MissingDependency, ModelError
from quantbench.models.gguf import part_names

CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
"""What belongs to a checkpoint: weights, configuration and tokenizer; pickles are never fetched."""

_LISTED = 20


def download(name: str, *, trust_remote_code: bool = False) -> tuple[Path, str]:
    """Fetch ``ORG/REPO[@REVISION]`` as a folder, or one file of it by ``ORG/REPO[@REVISION]:TYPE``; its path and commit.

    What lies in the hub's own cache is used when the hub cannot be reached. Raises ModelError when nothing can be had, or
    when TYPE names no file or several.
    """
    hub = _client(name)
    place, _, wanted = name.partition(":")
    repository, _, revision = place.partition("@")
    if wanted:
        return _gguf(hub, name, repository, revision or None, wanted)
    patterns = [*CHECKPOINT_FILES, "*.py"] if trust_remote_code else list(CHECKPOINT_FILES)
    with _hub_errors(name):
        folder = Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    return folder, folder.name


def download_config(name: str, *, any_age: bool = False) -> Path:
    """Fetch nothing but the config.json of ``ORG/REPO[@REVISION]``. Raises ModelError when it cannot be had.

    ``any_age``: one that lies in the hub's own cache will do, however old.
    """
    hub = _client(name)
    repository, _, revision = name.partition("@")
    if any_age:
        with suppress(Exception):  # it is not there: fetched below
            return Path(hub.hf_hub_download(repository, "config.json", revision=revision or None, local_files_only=True))
    with _hub_errors(name):
        return Path(hub.hf_hub_download(repository, "config.json", revision=revision or None))


def _client(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependency(
            f"model {name!r} is on the hub and huggingface_hub is not installed; pip install 'quantbench[torch]'"
        ) from error
    return huggingface_hub


def _gguf(hub: Any, name: str, repository: str, revision: str | None, wanted: str) -> tuple[Path, str]:
    with _hub_errors(name):
        first = _file_of_type(hub, repository, revision, wanted)
        paths = [Path(hub.hf_hub_download(repository, part, revision=revision)) for part in part_names(first)]
    commit = paths[0].parents[len(PurePosixPath(first).parts) - 1].name
    return paths[0], commit


def _file_of_type(hub: Any, repository: str, revision: str | None, wanted: str) -> str:
    """The repository's file of that type; one in the hub's cache when the hub cannot be asked."""
    try:
        files = list(hub.list_repo_files(repository, revision=revision))
    except Exception:
        with suppress(Exception):  # nothing there either: the first error says more
            folder = Path(hub.snapshot_download(repository, revision=revision, local_files_only=True))
            return choose_gguf(repository, [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")], wanted)
        raise
    return choose_gguf(repository, files, wanted)


def choose_gguf(repository: str, files: Sequence[str], wanted: str) -> str:
    """The file, or the first part, whose name holds the type ``wanted`` as a word, in upper or lower case.

    ``Q4_K`` is not found in ``Q4_K_M``; ``mmproj`` files are no language models. ModelError when none or several have it.
    """
    models = sorted(
        each for each in files if each.endswith(".gguf") and "mmproj" not in each.lower() and each == part_names(each)[0]
    )
    word = re.compile(rf"(?<![a-z0-9]){re.escape(wanted)}(?![a-z0-9_])", re.IGNORECASE)
    found = [each for each in models if word.search(each)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ModelError(
            f"{repository} on the hub has several GGUF files of type {wanted} ({_named(found)}); "
            "download the one you mean and give its path"
        )
    if models:
        raise ModelError(f"{repository} on the hub has no GGUF file of type {wanted}; it has {_named(models)}")
    raise ModelError(f"{repository} on the hub has no GGUF file; give {repository!r} without :{wanted} for its checkpoint")


def _named(files: Sequence[str]) -> str:
    rest = len(files) - _LISTED
    return ", ".join(files[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turn whatever the hub's client raises into one sentence."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # each of its retries is a warning; the end is one sentence
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"model {name!r} could not be fetched from the hub ({first_line}); check the name, the network and HF_TOKEN"
        ) from error
    finally:
        logger.setLevel(level)
