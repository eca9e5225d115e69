"""Artifacts are made once and are never read half-written."""

from __future__ import annotations

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench import cache
from quantbench.errors import QuantbenchError

if TYPE_CHECKING:
    from collections.abc import Iterator

ASKED = {"content": "c0ffee", "precision": "q8_0"}


@pytest.fixture(scope="module")
def cache_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for all examples of a property."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("QUANTBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("QUANTBENCH_CACHE", str(folder))
    return folder


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_variable_names_the_folder(cache_folder: Path) -> None:
    assert cache.cache_root() == cache_folder


def test_a_relative_folder_stays_where_it_was_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUANTBENCH_CACHE", "here")
    assert cache.cache_root() == tmp_path / "here"


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_it_is_the_users_cache_folder(
    value: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if value is None:
        monkeypatch.delenv("QUANTBENCH_CACHE", raising=False)
    else:
        monkeypatch.setenv("QUANTBENCH_CACHE", value)
    assert cache.cache_root().name == "quantbench"
    assert cache.cache_root() != Path()


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4))
def test_the_address_depends_on_what_was_asked_and_not_on_its_order(asked: dict[str, object]) -> None:
    assert cache.digest(dict(reversed(asked.items()))) == cache.digest(asked)
    assert cache.digest({**asked, "another key": 1}) != cache.digest(asked)


@pytest.mark.usefixtures("cache_folder")
def test_an_artifact_is_made_once_and_says_what_it_was_made_from() -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "model.gguf").write_bytes(b"weights")

    first = cache.artifact("gguf", ASKED, make)
    second = cache.artifact("gguf", dict(reversed(ASKED.items())), make)
    assert first == second
    assert len(made) == 1
    assert _files(first) == ["asked.json", "model.gguf"]
    assert json.loads((first / "asked.json").read_text()) == ASKED


@pytest.mark.usefixtures("cache_folder")
def test_other_kinds_and_other_wishes_have_other_places() -> None:
    places = {
        cache.artifact("gguf", ASKED, lambda _: None),
        cache.artifact("reference", ASKED, lambda _: None),
        cache.artifact("gguf", {**ASKED, "precision": "q4_k_m"}, lambda _: None),
    }
    assert len(places) == 3


def test_a_failed_make_leaves_nothing_and_is_tried_again(cache_folder: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "model.gguf").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.artifact("gguf", ASKED, fail)
    assert _files(cache_folder) == []
    place = cache.artifact("gguf", ASKED, lambda folder: (folder / "model.gguf").write_bytes(b"whole"))
    assert (place / "model.gguf").read_bytes() == b"whole"


@pytest.mark.usefixtures("cache_folder")
def test_the_folder_that_was_filled_is_moved_and_not_copied() -> None:
    """A copy would be there half-written for a while."""
    filled: list[int] = []
    place = cache.artifact("gguf", ASKED, lambda folder: filled.append(folder.stat().st_ino))
    assert filled == [place.stat().st_ino]


@pytest.mark.usefixtures("cache_folder")
def test_nothing_is_in_place_while_it_is_being_made() -> None:
    """A process killed in the middle leaves a folder that nobody reads."""
    place = cache.cache_root() / "gguf" / cache.digest(ASKED)
    cache.artifact("gguf", ASKED, lambda _: None if not place.exists() else pytest.fail("visible before it was whole"))
    assert place.is_dir()


def test_when_two_race_the_first_wins_and_both_get_it(cache_folder: Path) -> None:
    both_are_making = Barrier(2)

    def make(text: str) -> Path:
        def fill(folder: Path) -> None:
            both_are_making.wait(timeout=30)
            (folder / "who").write_text(text)

        return cache.artifact("gguf", ASKED, fill)

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(make, ["one", "two"])
    assert one == two
    assert (one / "who").read_text() in ("one", "two")
    assert len(list((cache_folder / "gguf").iterdir())) == 1


@pytest.mark.usefixtures("cache_of_module")
@given(content=st.binary(max_size=200))
def test_file_sha256_is_hashlibs(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("sha") / "file"
    path.write_bytes(content)
    assert cache.file_sha256(path) == hashlib.sha256(content).hexdigest()
    assert cache.file_sha256(path) == hashlib.sha256(content).hexdigest()


@pytest.mark.usefixtures("cache_folder")
def test_file_sha256_notices_a_changed_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"aaaa")
    first = cache.file_sha256(path)
    path.write_bytes(b"bbbb")
    later = time.time_ns() + 10**9
    os.utime(path, ns=(later, later))
    assert cache.file_sha256(path) != first


@pytest.mark.usefixtures("cache_folder")
def test_file_sha256_reads_a_file_of_the_same_size_and_time_once(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"aaaa")
    stat = path.stat()
    first = cache.file_sha256(path)
    path.write_bytes(b"bbbb")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.file_sha256(path) == first


def test_write_atomically_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "note"
    cache.write_atomically(path, b"one")
    cache.write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert _files(tmp_path) == ["deep/note"]


def test_write_atomically_keeps_the_old_file_when_it_cannot_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "note"
    cache.write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        cache.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert _files(tmp_path) == ["note"]


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(QuantbenchError, match=r"the cache cannot be written at .*; set QUANTBENCH_CACHE"):
        cache.artifact("kind", {"a": 1}, Path.exists)
