"""Names, files and numbers from outside: what no parser survives is refused, with a reason, and nothing is waited for."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core import outside
from quantbench.core.errors import QuantbenchError, UsageError, told
from quantbench.core.text import MOST, quoted, shortened

NAMES = ("", "y" * 5000, "a\0b", "~nosuchuser", "/dev/null/x", "\udcff")
"""Names that no file has."""


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_no_file_can_have_is_of_no_file(name: str) -> None:
    assert (outside.exists(name), outside.is_file(name), outside.is_folder(name)) == (False, False, False)
    assert str(outside.expanded(name)) == str(Path(name))
    with pytest.raises(OSError, match=r"."):
        outside.read_bytes(Path(name))


def test_the_home_of_somebody_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert outside.expanded("~/x") == tmp_path / "x"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), Path("/dev/full")):
        assert outside.exists(path)
        assert not outside.is_file(path)
        with pytest.raises(OSError, match="it is no regular file"):
            outside.read_bytes(path)
    with pytest.raises(IsADirectoryError):
        outside.read_bytes(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"1234")
    assert outside.read_bytes(tmp_path / "f", 4) == b"1234"
    with pytest.raises(OSError, match="it has more than 3 bytes") as caught:
        outside.read_bytes(tmp_path / "f", 3)
    assert caught.value.errno == errno.EFBIG


@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_text_is_read_as_path_reads_it(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text"
    path.write_bytes(text.encode())
    assert outside.read_text(path) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "why"),
    [("[" * 100_000, "it is nested too deeply"), ("9" * 5000, "a number in it has too many digits")],
)
def test_what_python_cannot_hold_is_an_error_of_values(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        outside.parse_json(text)
    with pytest.raises(ValueError, match=why):
        outside.parse_toml(f"a = {text}")


@given(st.integers(0, 10**20))
def test_a_whole_number_is_one_of_at_most_18_digits(value: int) -> None:
    assert outside.whole_number(str(value)) == (value if value < 10**18 else None)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1e3", " 1", "0x1", "\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT THREE}"])
def test_what_is_no_whole_number(text: str) -> None:
    assert outside.whole_number(text) is None


@given(st.text(max_size=40), st.integers(2, 30))
def test_a_shortened_text_keeps_both_ends(text: str, most: int) -> None:
    found = shortened(text, most)
    assert found == text if len(text) <= most else found.startswith(text[: most // 2]) and found.endswith(text[-(most // 2) :])
    assert len(found) <= most + 40


def test_whatever_an_error_quotes_it_is_bounded_and_says_what_to_do() -> None:
    message = str(UsageError(f"no {'x' * 10**6!r}; give another"))
    assert len(message) < MOST + 100
    assert message.startswith("no 'xxx")
    assert "998,0" in message
    assert message.endswith("xxx'; give another")


def test_what_python_cannot_write_is_said_in_words() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert quoted(deep) == "something of type list, too deep or too long to show"
    assert quoted(16**5000) == "something of type int, too deep or too long to show"
    assert quoted("a\n") == "'a\\n'"


def test_what_is_told_of_an_error_of_the_system() -> None:
    assert told(PermissionError(13, "Permission denied", "/x")) == "Permission denied: /x"
    assert told(OSError("odd")) == "OSError"
    assert told(QuantbenchError("a sentence")) == "a sentence"
