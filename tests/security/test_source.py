"""The source distribution that llama.cpp's converter comes with: fetched by the real pip, from a hostile index."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

from quantbench.core.cache import file_sha256
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

SCRIPT: Members = {f"{INSIDE}convert_hf_to_gguf.py": b"print('theirs')"}


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
    publish(index, SCRIPT)
    (archive,) = index.iterdir()

    with pytest.raises(QuantbenchError, match="could not be downloaded") as caught:
        converter()

    assert file_sha256(archive) in str(caught.value), "pip names the hash that it found"


def test_of_an_unreviewed_one_only_plain_files_are_taken(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links inside an archive are no harm to pip, but the converter's files lie elsewhere when they are unpacked."""
    monkeypatch.setattr(source, "SOURCE_SHA256", {})
    publish(index, {
        **SCRIPT,
        f"{INSIDE}conversion/base.py": b"",
        f"{INSIDE}conversion/link": (tarfile.SYMTYPE, "../../../PKG-INFO"),
        f"{INSIDE}conversion/out": (tarfile.SYMTYPE, "../../.."),
        f"{INSIDE}gguf-py/hard": (tarfile.LNKTYPE, f"llama_cpp_python-{version('llama_cpp_python')}/backend.py"),
        f"{INSIDE}elsewhere.py": b"no part of the converter",
    })  # fmt: skip

    script = converter()

    assert script.read_text() == "print('theirs')"
    found = {str(path.relative_to(script.parent)) for path in script.parent.rglob("*") if path.is_symlink() or path.is_file()}
    assert found == {script.name, "conversion/base.py", "asked.json", "checksums.json"}


@pytest.mark.parametrize(
    "members",
    [
        {f"{INSIDE}conversion/../../../escaped.py": b""},
        {"../escaped.py": b""},
        {f"{INSIDE}conversion/escaped.py": (tarfile.SYMTYPE, "/etc/passwd")},
        {f"{INSIDE}conversion/escaped.py": (tarfile.FIFOTYPE, "")},
        {f"{INSIDE}conversion/escaped.py": (tarfile.CHRTYPE, "")},
    ],
    ids=["out of the converter", "out of the archive", "a link out", "a pipe", "a device"],
)
def test_one_that_leaves_its_folder_is_refused_and_leaves_nothing(
    members: Members, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By pip, which unpacks all of it, or else here."""
    monkeypatch.setattr(source, "SOURCE_SHA256", {})
    publish(index, {**SCRIPT, **members})

    with pytest.raises(QuantbenchError, match=r"could not be downloaded \(|is no source distribution of llama-cpp") as caught:
        converter()

    assert "\n" not in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.name in ("escaped.py", "convert_hf_to_gguf.py")] == []
