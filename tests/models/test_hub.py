"""One GGUF file of a hub repository, served from a folder that stands in for the hub's client."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantbench.core.errors import MissingDependency, ModelError, UsageError
from quantbench.core.install import install_hint
from quantbench.core.scenario import Scenario, Variant, short_name
from quantbench.models import check_name
from quantbench.models.checkpoint import resolve
from quantbench.models.gguf import listed_files
from quantbench.models.hub import choose_gguf, file_sizes, forget, not_cached

COMMIT = "0123456789abcdef"
FILES = (
    "README.md",
    "config.json",
    "tiny-IQ4_XS.gguf",
    "tiny-Q4_K_M.gguf",
    "tiny-Q4_K_S.gguf",
    "tiny-bf16.gguf",
    "mmproj-tiny-f16.gguf",
    "tiny.imatrix.gguf",
    "big/tiny.Q8_0-00001-of-00003.gguf",
    "big/tiny.Q8_0-00002-of-00003.gguf",
    "big/tiny.Q8_0-00003-of-00003.gguf",
)


@dataclass
class StandInHub:
    """The four calls of huggingface_hub that are used, over a folder that is laid out as the hub's cache is."""

    folder: Path
    online: bool = True
    downloaded: list[tuple[str, str, str | None]] = field(default_factory=list)

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshots" / COMMIT

    def _reach(self) -> None:
        if not self.online:
            raise OSError("\nConnection refused\nand forty lines more")

    def model_info(self, repository: str, *, revision: str | None, files_metadata: bool) -> SimpleNamespace:
        assert files_metadata
        names = self.list_repo_files(repository, revision=revision)
        sizes = {**{name: len(name) for name in names}, "sizeless": None}
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()])

    def list_repo_files(self, repository: str, *, revision: str | None) -> list[str]:
        self._reach()
        if repository != "org/tiny":
            raise FileNotFoundError(f"404 Client Error: {repository} not found\nmore")
        return list(FILES)

    def hf_hub_download(self, repository: str, filename: str, *, revision: str | None) -> str:
        path = self.snapshot / filename
        if not path.exists():
            self._reach()
            blob = self.folder / "blobs" / hashlib.sha256(filename.encode()).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(b"GGUF" + filename.encode())
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(blob)
        self.downloaded.append((repository, filename, revision))
        return str(path)

    def snapshot_download(self, repository: str, **_: Any) -> str:
        if not self.snapshot.is_dir():
            raise FileNotFoundError(f"{repository} is not in the cache")
        return str(self.snapshot)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandInHub:
    stand_in = StandInHub(tmp_path / "models--org--tiny")
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)  # type: ignore[arg-type]
    return stand_in


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_named_type_is_downloaded_and_nothing_else(hub: StandInHub) -> None:
    found = resolve("org/tiny:Q4_K_M")

    assert (found.kind, found.name, found.revision) == ("gguf", "org/tiny:Q4_K_M", COMMIT)
    assert found.path.read_bytes() == b"GGUFtiny-Q4_K_M.gguf"
    assert found.content_hash == hashlib.sha256(b"GGUFtiny-Q4_K_M.gguf").hexdigest()
    assert hub.downloaded == [("org/tiny", "tiny-Q4_K_M.gguf", None)]


def test_a_revision_stands_before_the_type(hub: StandInHub) -> None:
    resolve("org/tiny@refs/pr/3:q4_k_s")

    assert hub.downloaded == [("org/tiny", "tiny-Q4_K_S.gguf", "refs/pr/3")]


def test_all_parts_of_a_split_file_are_downloaded_and_the_first_is_given(hub: StandInHub) -> None:
    found = resolve("org/tiny:Q8_0")

    assert found.path == hub.snapshot / "big/tiny.Q8_0-00001-of-00003.gguf"
    assert found.revision == COMMIT
    assert [name for _, name, _ in hub.downloaded] == [f"big/tiny.Q8_0-0000{part}-of-00003.gguf" for part in (1, 2, 3)]


def test_each_part_counts_for_the_hash(hub: StandInHub) -> None:
    before = resolve("org/tiny:Q8_0").content_hash
    (hub.snapshot / "big/tiny.Q8_0-00003-of-00003.gguf").resolve().write_bytes(b"GGUFchanged in length")

    assert resolve("org/tiny:Q8_0").content_hash != before


def test_a_file_in_the_hubs_cache_is_used_when_the_hub_cannot_be_reached(hub: StandInHub) -> None:
    online = resolve("org/tiny:Q4_K_M")
    hub.online = False

    assert resolve("org/tiny:Q4_K_M") == online
    assert "(Connection refused)" in refusal(lambda: resolve("org/tiny:Q4_K_S"))  # what the hub has is not known


def test_a_hub_that_cannot_be_reached_is_one_sentence(hub: StandInHub) -> None:
    hub.online = False

    assert refusal(lambda: resolve("org/tiny:Q4_K_M")) == (
        "model 'org/tiny:Q4_K_M' could not be fetched from the hub (Connection refused); "
        "check the name, the network and HF_TOKEN"
    )


@pytest.mark.usefixtures("hub")
def test_a_repository_that_is_not_there_is_one_sentence() -> None:
    assert "(404 Client Error: org/nowhere not found)" in refusal(lambda: resolve("org/nowhere:Q4_K_M"))


def test_a_download_that_breaks_is_one_sentence(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> str:
        raise PermissionError("401 Client Error: gated\nlog in")

    monkeypatch.setattr(hub, "hf_hub_download", broken)

    assert "(401 Client Error: gated); check the name, the network and HF_TOKEN" in refusal(lambda: resolve("org/tiny:Q4_K_M"))


def test_without_the_hubs_client_the_pip_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    with pytest.raises(MissingDependency, match=re.escape(install_hint("torch"))):
        resolve("org/tiny:Q4_K_M")


@pytest.mark.parametrize(
    ("files", "wanted", "chosen"),
    [
        (("a-Q4_K_M.gguf", "a-Q4_K_S.gguf"), "q4_k_m", "a-Q4_K_M.gguf"),
        (("a.q4_0.gguf", "a.iq4_0.gguf", "a.q4_0_8_8.gguf"), "Q4_0", "a.q4_0.gguf"),
        (("a-bf16.gguf", "a_f16.gguf", "mmproj-F16.gguf"), "F16", "a_f16.gguf"),
        (("a-UD-Q2_K_XL.gguf", "a-Q2_K.gguf"), "Q2_K", "a-Q2_K.gguf"),
        (("a-UD-Q2_K_XL.gguf", "a-Q2_K.gguf"), "UD-Q2_K_XL", "a-UD-Q2_K_XL.gguf"),
        (("Q6_K/a-00001-of-00002.gguf", "Q6_K/a-00002-of-00002.gguf"), "Q6_K", "Q6_K/a-00001-of-00002.gguf"),
    ],
)
def test_a_type_is_found_as_a_whole_word(files: tuple[str, ...], wanted: str, chosen: str) -> None:
    assert choose_gguf("org/tiny", files, wanted) == chosen


@pytest.mark.parametrize(
    ("files", "wanted", "message"),
    [
        (FILES, "Q4_K", "has no GGUF file of type Q4_K; it has big/tiny.Q8_0-00001-of-00003.gguf, tiny-IQ4_XS.gguf"),
        (FILES, "f16", "has no GGUF file of type f16; it has"),
        (
            ("a-Q4_0.gguf", "b-Q4_0.gguf", "c-Q8_0.gguf"), "Q4_0",
            "several GGUF files of type Q4_0 (a-Q4_0.gguf, b-Q4_0.gguf); download the one you mean and give its path",
        ),
        (("model.safetensors", "mmproj-f16.gguf"), "f16", "has no GGUF file; give 'org/tiny' without :f16 for its checkpoint"),
        (tuple(f"{number}-Q8_0.gguf" for number in range(10, 60)), "Q4_0", "29-Q8_0.gguf and 30 more"),
    ],
)  # fmt: skip
def test_none_or_several_of_a_type_name_what_there_is(files: tuple[str, ...], wanted: str, message: str) -> None:
    assert message in refusal(lambda: choose_gguf("org/tiny", files, wanted))


@pytest.mark.parametrize("name", ["org/tiny:Q4_K_M", "org/tiny@main:Q4_K_M", "o.r-g/t_i.ny@refs/pr/3:UD-Q4_K_XL"])
def test_names_with_a_type_can_be_models_and_make_good_ids(name: str) -> None:
    check_name(name)
    scenario = Scenario(model=name, variant=Variant(method="gguf", precision="q4_k_m"), prompts="ten")
    assert short_name(name) == name
    assert scenario.id.rsplit("/", 2) == [name, "gguf-q4_k_m", "ten"]


@pytest.mark.parametrize("name", ["tiny:Q4_K_M", "org/tiny:", "org/tiny:Q4:K", "org/tiny:a//b", "org/tiny:/a"])
def test_names_that_are_nothing_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


def test_a_listing_has_the_bytes_of_every_model_with_its_parts_together(hub: StandInHub) -> None:
    sizes = file_sizes("org/tiny")
    assert sizes["config.json"] == len("config.json")
    assert sizes["sizeless"] == 0
    found = {each.name: each for each in listed_files(sizes)}
    models = ["big/tiny.Q8_0", "tiny-IQ4_XS", "tiny-Q4_K_M", "tiny-Q4_K_S", "tiny-bf16"]  # mmproj and imatrix are none
    assert list(found) == models
    assert found["big/tiny.Q8_0"].parts == FILES[-3:]
    assert found["big/tiny.Q8_0"].size_bytes == sum(map(len, FILES[-3:]))
    hub.online = False
    assert "(Connection refused)" in refusal(lambda: file_sizes("org/tiny"))
    hub.online = True
    resolve("org/tiny:Q4_K_M")
    hub.online = False
    assert file_sizes("org/tiny") == {"tiny-Q4_K_M.gguf": len(b"GGUFtiny-Q4_K_M.gguf")}


def test_a_path_without_the_ending_names_one_file_whatever_else_it_matches() -> None:
    files = ["m-Q4_K_M.gguf", "UD/m-Q4_K_M.gguf", "x-m-Q4_K_M.gguf"]
    assert choose_gguf("org/m", files, "m-Q4_K_M") == "m-Q4_K_M.gguf"
    assert choose_gguf("org/m", files, "UD/m-Q4_K_M") == "UD/m-Q4_K_M.gguf"
    assert "several" in refusal(lambda: choose_gguf("org/m", files, "Q4_K_M"))
    check_name("org/m:UD/m-Q4_K_M")


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put files into a cache of the real client's; a name and its content give the entry of the snapshot."""
    pytest.importorskip("huggingface_hub")
    for module in ("constants", "utils._cache_manager"):  # the second has taken it over from the first when it was imported
        monkeypatch.setattr(f"huggingface_hub.{module}.HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--org--real", "0" * 40

    def put(name: str, content: str) -> Path:
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        (repository / "blobs").mkdir(exist_ok=True)
        blob = repository / "blobs" / hashlib.sha256(content.encode()).hexdigest()
        entry = repository / "snapshots" / commit / name
        blob.write_text(content)
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.symlink_to(blob)
        return entry

    return put


def test_only_named_files_are_deleted_from_the_cache_and_shared_content_stays(cached: Callable[[str, str], Path]) -> None:
    assert forget("org/real", ["a.gguf"])  # there is no cache yet, and nothing to delete
    one, two, twin = cached("a.gguf", "A"), cached("big/b.gguf", "B"), cached("c.gguf", "A")
    assert not_cached("org/real", ["a.gguf", "big/b.gguf", "d.gguf"]) == ["d.gguf"]
    blob = two.resolve()
    assert forget("org/real", ["a.gguf", "big/b.gguf", "d.gguf"])
    assert not one.is_symlink()
    assert not two.is_symlink()
    assert not blob.exists()
    assert twin.read_text() == "A"
    assert not_cached("org/real", ["a.gguf", "big/b.gguf", "c.gguf"]) == ["a.gguf", "big/b.gguf"]
