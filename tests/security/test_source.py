"""The source distribution that llama.cpp's converter comes with: fetched by the real pip, from a hostile index."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

from quantbench.core.errors import QuantbenchError
from quantbench.runtimes.llama_cpp import converter as source
from quantbench.runtimes.llama_cpp.converter import converter

BACKEND = '''
def prepare_metadata_for_build_wheel(folder, settings=None):
    import os
    os.mkdir(os.path.join(folder, "x.dist-info"))
    with open(os.path.join(folder, "x.dist-info", "METADATA"), "w") as out:
        out.write("Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: {}\\n")
    return "x.dist-info"
'''
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
INSIDE = "vendor/llama.cpp/"

Members = Mapping[str, bytes | tuple[bytes, str]]
"""By name: a content, or a type and what it links to."""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only index that pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "DISABLE_PIP_VERSION_CHECK": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("QUANTBENCH_LLAMA_CPP", raising=False)
    return folder


def publish(index: Path, members: Members) -> None:
    number = version("llama_cpp_python")
    project: Members = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: {number}\n".encode(),
        "pyproject.toml": PROJECT.encode(), "backend.py": BACKEND.format(number).encode(),
    }  # fmt: skip
    with tarfile.open(index / f"llama_cpp_python-{number}.tar.gz", "w:gz") as archive:
        for name, content in {**project, **members}.items():
            member = tarfile.TarInfo(f"llama_cpp_python-{number}/{name}")
            if isinstance(content, bytes):
                member.size = len(content)
            else:
                member.type, member.linkname = content
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)


def test_a_distribution_other_than_the_reviewed_one_is_refused(index: Path) -> None:
    publish(index, {f"{INSIDE}convert_hf_to_gguf.py": b"print('theirs')"})

    with pytest.raises(QuantbenchError, match="could not be downloaded") as caught:
        converter()

    assert "hash" in str(caught.value).lower()


def test_of_an_unreviewed_one_only_plain_files_are_taken(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "SOURCE_SHA256", {})
    secret = tmp_path / "secret"
    secret.write_text("the users own")
    publish(index, {
        f"{INSIDE}convert_hf_to_gguf.py": b"print('theirs')",
        f"{INSIDE}conversion/link": (tarfile.SYMTYPE, str(secret)),
        f"{INSIDE}conversion/out": (tarfile.SYMTYPE, "../../.."),
        f"{INSIDE}conversion/hard": (tarfile.LNKTYPE, "convert_hf_to_gguf.py"),
        f"{INSIDE}gguf-py/pipe": (tarfile.FIFOTYPE, ""),
        f"{INSIDE}gguf-py/zero": (tarfile.CHRTYPE, ""),
        f"{INSIDE}elsewhere.py": b"not a part of the converter",
        "../outside.py": b"",
    })  # fmt: skip

    script = converter()

    assert script.read_text() == "print('theirs')"
    assert {path.name for path in script.parent.rglob("*")} == {script.name, "asked.json", "checksums.json"}


def test_one_that_leaves_its_folder_is_refused_and_leaves_nothing(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "SOURCE_SHA256", {})
    publish(index, {
        f"{INSIDE}convert_hf_to_gguf.py": b"print('theirs')",
        f"{INSIDE}conversion/../../../../escaped.py": b"print('theirs')",
    })  # fmt: skip

    with pytest.raises(QuantbenchError, match="is no source distribution of llama-cpp-python as it should be"):
        converter()

    assert not list(tmp_path.rglob("escaped.py"))
    assert not list((tmp_path / "cache").rglob("convert_hf_to_gguf.py"))
