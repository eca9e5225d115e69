"""The hub: the files of a checkpoint, or one GGUF file of a repository that holds many: listed, fetched and deleted again."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from quantbench.core.errors import MissingDependency, ModelError
from quantbench.core.install import install_hint
from quantbench.models.gguf import listed_files, part_names, whole_name

CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
"""What belongs to a checkpoint: weights, configuration and tokenizer; pickles are never fetched."""

_LISTED = 20


def download(name: str, *, trust_remote_code: bool = False) -> tuple[Path, str]:
    """Fetch ``ORG/REPO[@REVISION]`` as a folder, or one GGUF file as ``ORG/REPO[@REVISION]:TYPE``; its path and commit.

    If the hub cannot be reached, its local cache is used. Raises ModelError if that fails too, or if TYPE matches no file or
    several.
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
    """Fetch only the config.json of ``ORG/REPO[@REVISION]``. Raises ModelError if that fails.

    ``any_age``: accept one from the hub's local cache, however old.
    """
    if any_age and (cached := cached_config(name)):
        return cached
    hub = _client(name)
    repository, _, revision = name.partition("@")
    with _hub_errors(name):
        return Path(hub.hf_hub_download(repository, "config.json", revision=revision or None))


def cached_config(name: str) -> Path | None:
    """The config.json of ``ORG/REPO[@REVISION]`` in the hub's local cache, however old; None if it is not there."""
    with suppress(Exception):  # no client, or a name that it takes for none: nothing is there
        return Path(path) if (path := _cached(name, "config.json")) else None
    return None


def file_sizes(name: str) -> Mapping[str, int]:
    """The bytes of every file of ``ORG/REPO[@REVISION]``, by path; of those in the local cache if the hub cannot be reached.

    Raises ModelError if that fails too.
    """
    hub = _client(name)
    repository, _, revision = name.partition("@")
    with _hub_errors(name):
        try:
            listed = hub.model_info(repository, revision=revision or None, files_metadata=True).siblings
        except Exception:
            with suppress(Exception):  # not in the cache either: the first error says more
                folder = Path(hub.snapshot_download(repository, revision=revision or None, local_files_only=True))
                here = (path for path in folder.rglob("*") if path.is_file())
                return {path.relative_to(folder).as_posix(): path.stat().st_size for path in here}
            raise
    return {each.rfilename: each.size or 0 for each in listed}


def not_cached(name: str, files: Iterable[str]) -> list[str]:
    """Those of the ``files`` of ``ORG/REPO[@REVISION]`` that the hub's cache does not hold."""
    return [file for file in files if not _cached(name, file)]


def forget(name: str, files: Iterable[str]) -> bool:
    """Delete files of ``ORG/REPO[@REVISION]`` from the hub's cache, by its own client; False where that did not work.

    Content that other revisions share stays.
    """
    try:
        paths = {path for file in files if (path := _cached(name, file))}
        if not paths:
            return True
        cache = _client(name).scan_cache_dir()
        held = (file for repository in cache.repos for revision in repository.revisions for file in revision.files)
        cache.delete_files(*(file for file in held if str(file.file_path) in paths)).execute()
    except Exception:  # noqa: BLE001 - whatever the client raises: a file that stays costs only space
        return False
    return True


def _cached(name: str, file: str) -> str:
    """Where the hub's cache has a file; empty where it has not."""
    repository, _, revision = name.partition("@")
    found = _client(name).try_to_load_from_cache(repository, file, revision=revision or None)
    return found if isinstance(found, str) else ""


def _client(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependency(
            f"model {name!r} is on the hub, but huggingface_hub is not installed; {install_hint('torch')}"
        ) from error
    return huggingface_hub


def _gguf(hub: Any, name: str, repository: str, revision: str | None, wanted: str) -> tuple[Path, str]:
    with _hub_errors(name):
        first = _file_of_type(hub, repository, revision, wanted)
        paths = [Path(hub.hf_hub_download(repository, part, revision=revision)) for part in part_names(first)]
    commit = paths[0].parents[len(PurePosixPath(first).parts) - 1].name
    return paths[0], commit


def _file_of_type(hub: Any, repository: str, revision: str | None, wanted: str) -> str:
    """The repository's file of that type; one in the local cache if the hub cannot be reached."""
    try:
        files = list(hub.list_repo_files(repository, revision=revision))
    except Exception:
        with suppress(Exception):  # not in the cache either: the first error says more
            folder = Path(hub.snapshot_download(repository, revision=revision, local_files_only=True))
            return choose_gguf(repository, [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")], wanted)
        raise
    return choose_gguf(repository, files, wanted)


def choose_gguf(repository: str, files: Sequence[str], wanted: str) -> str:
    """The file, or first part, whose name contains the type ``wanted`` as a whole word, in upper or lower case.

    ``Q4_K`` does not match ``Q4_K_M``; ``mmproj`` files are not language models. A file's whole path without ``.gguf`` names
    that one, whatever else it matches. ModelError if none or several match.
    """
    models = sorted(each.first for each in listed_files(dict.fromkeys(files, 0)) if each.first in files)
    if whole := [each for each in models if whole_name(each) == wanted]:
        return whole[0]
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
    logger.setLevel(logging.ERROR)  # it warns at every retry; the user gets one sentence at the end
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
