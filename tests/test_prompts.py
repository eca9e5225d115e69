"""Prompt sets: the shipped ones, files of the user's own, and what is wrong with a file."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.conversation import Message
from quantbench.core.errors import UsageError
from quantbench.core.statistics import FEW_CLUSTERS
from quantbench.models import checkpoint
from quantbench.planning import prompts
from quantbench.planning.matrix import default_matrix, scenarios
from quantbench.planning.prompts import PromptSet
from quantbench.runtimes import open_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


def test_ten_has_ten_and_two_are_two_of_them() -> None:
    ten, two = prompts.load("ten"), prompts.load("two")
    assert (len(ten.prompts), len(two.prompts)) == (10, 2)
    assert set(two.prompts) <= set(ten.prompts)
    assert {"ten", "two"} <= set(prompts.names())


def test_the_default_set_is_mixed_and_large_enough_for_the_interval_of_many() -> None:
    mixed = prompts.load("mixed").prompts
    assert {scenario.prompts for scenario in scenarios(default_matrix())} == {"mixed"}
    assert len(mixed) == 32 >= FEW_CLUSTERS
    assert min(map(len, mixed[:10])) < 60  # what is timed is short
    assert max(map(len, mixed[:10])) > 300  # and long
    assert any("\n" in text for text in mixed[:10])


def test_what_is_not_timed_of_the_default_set_is_scored_well_into_a_text() -> None:
    tokenizer = open_tokenizer(checkpoint.resolve("canary"))
    lengths = [len(tokenizer.encode(text)) for text in prompts.load("mixed").prompts]
    assert min(lengths[10:]) >= 128
    assert max(lengths[10:]) < 256


def test_seeded_inputs_are_a_set_without_prompts_and_no_shipped_one() -> None:
    prompts.check_name("seeded")
    loaded = prompts.load("seeded")
    assert (loaded.name, loaded.prompts, loaded.content_hash()) == ("seeded", (), "seeded")
    assert "seeded" not in prompts.names()


@pytest.mark.parametrize("name", prompts.names())
def test_every_shipped_set_loads_without_doubles(name: str) -> None:
    loaded = prompts.load(name)
    assert loaded.name == name
    assert len(set(loaded.prompts)) == len(loaded.prompts)


def test_one_prompt_a_line_without_blank_lines_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# a comment\n\n  Hello,  world \n\t# another\nSaid: #1 is here\n   \n", encoding="utf-8")
    assert prompts.load(str(path)).prompts == ("Hello,  world", "Said: #1 is here")


def test_a_written_newline_becomes_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("def f():\\n    pass\n", encoding="utf-8")
    assert prompts.load(str(path)).prompts == ("def f():\n    pass",)


def test_windows_line_ends_are_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(b"one\r\ntwo\r\n")
    assert prompts.load(str(path)).prompts == ("one", "two")


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    """Editors on Windows write one; the comment below it is still a comment."""
    path = tmp_path / "mine.txt"
    path.write_text("# a comment\none\n", encoding="utf-8-sig")
    assert prompts.load(str(path)).prompts == ("one",)


@given(lines=st.lists(st.text("abc xyz,.é漢", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=6))
def test_a_file_reads_back_as_its_lines(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("prompts") / "mine.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert prompts.load(str(path)).prompts == tuple(lines)


@given(st.lists(st.text("ab\n", max_size=4), max_size=4), st.lists(st.text("ab\n", max_size=4), max_size=4))
def test_the_content_hash_tells_sets_apart_and_ignores_the_name(one: list[str], other: list[str]) -> None:
    first, second = PromptSet(name="x", prompts=tuple(one)), PromptSet(name="y", prompts=tuple(other))
    alike = one == other or not (any(one) or any(other) or max(len(one), len(other)) > 1)
    assert (first.content_hash() == second.content_hash()) == alike


def test_an_unknown_set_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"^unknown prompt set 'tenn'; did you mean 'ten'"):
        prompts.load("tenn")


@pytest.mark.parametrize("name", ["ten", "two", "mixed"])
def test_plain_prompts_are_known_by_what_they_always_were(name: str) -> None:
    """Else every row measured so far would have another key."""
    assert prompts.load(name).content_hash() == hashlib.sha256("\0".join(prompts.load(name).prompts).encode()).hexdigest()


@pytest.mark.parametrize("name", ["missing.txt", "some/where"])
def test_a_file_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        prompts.load(name)
    assert str(caught.value) == f"prompt file {name!r} does not exist; give a text file with one prompt per line"


@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n"])
def test_zero_prompts_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "none.txt"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        prompts.load(str(path))
    assert str(caught.value) == f"prompt set {str(path)!r} has no prompts; write one prompt per line"


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("Gr\xfc\xdfe".encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        prompts.load(str(path))
    assert str(caught.value).startswith(f"prompt file {str(path)!r} is not UTF-8 text (")
    assert str(caught.value).endswith("save it as UTF-8")


def test_a_text_is_one_prompt_byte_for_byte_but_for_its_last_newline(tmp_path: Path) -> None:
    """llama-perplexity takes one newline off as well; a byte order mark, line ends and comments stay as they are."""
    path = tmp_path / "running.txt"
    content = "\ufeff# no comment\r\n\n  one\ttwo \\n é\n\n"
    path.write_bytes(content.encode())
    loaded = prompts.load(f"text:{path}")
    assert (loaded.is_text, loaded.prompts) == (True, (content[:-1],))
    assert not prompts.load("two").is_text


def test_a_text_is_known_by_its_content(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one.txt", "same.txt", "other.txt"))
    for path, content in ((one, "a b"), (same, "a b"), (other, "a c")):
        path.write_text(content)
    first, second, third = (prompts.load(f"text:{path}").content_hash() for path in (one, same, other))
    assert first == second != third


def test_a_text_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.txt")
    with pytest.raises(UsageError) as caught:
        prompts.check_name(f"text:{missing}")
    assert str(caught.value) == f"text file {missing!r} does not exist; give text:FILE with UTF-8 text"


@pytest.mark.parametrize(("content", "reason"), [(b"", "is empty"), (b" \n \n", "is empty"), (b"Gr\xfc", "is not UTF-8 text")])
def test_a_text_that_cannot_be_read_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        prompts.load(f"text:{path}")


# --- lengths and batches


def test_a_length_is_one_prompt_of_so_many_tokens() -> None:
    loaded = prompts.load("tokens:512")
    assert (loaded.name, loaded.tokens, len(loaded.prompts)) == ("tokens:512", 512, 1)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("ten", ("ten", 1)),
        ("ten@1", ("ten", 1)),
        ("ten@8", ("ten", 8)),
        ("tokens:64@8", ("tokens:64", 8)),
        ("a@b", ("a@b", 1)),
    ],
)
def test_a_batch_stands_behind_a_set(asked: str, found: tuple[str, int]) -> None:
    assert prompts.parse(asked) == found


def test_lengths_and_batches_are_part_of_the_content() -> None:
    asked = [("ten", 1), ("ten", 2), ("ten", 8), ("tokens:64", 1), ("tokens:65", 1), ("tokens:64", 8)]
    assert len({prompts.load(name).content_hash(batch) for name, batch in asked}) == len(asked)


@pytest.mark.parametrize("name", ["tokens:", "tokens:x", "tokens:1", "tokens:-5", "tokens:1.5", "tenn"])
def test_what_is_no_length_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        prompts.load(name)


@pytest.mark.parametrize("asked", ["ten@0", "seeded@2", "text:mine.txt@4"])
def test_what_cannot_be_answered_together_is_refused(asked: str) -> None:
    with pytest.raises(UsageError, match="cannot be answered"):
        prompts.parse(asked)


# --- conversations


def _jsonl(folder: Path, *lines: object) -> str:
    path = folder / "talk.jsonl"
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines), encoding="utf-8")
    return str(path)


def _asked(*messages: tuple[str, str], **others: object) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in messages], **others}


def test_the_set_for_chat_models_is_of_many_kinds_and_large_enough_for_the_interval_of_many() -> None:
    chat = prompts.load("chat")
    assert len(chat.conversations) == len(chat.prompts) == 32 >= FEW_CLUSTERS
    for some in (chat.conversations, chat.conversations[:10]):  # what is timed is of several kinds too
        assert any(len(each) > 2 for each in some), "several turns"
        assert any(each[0].role == "system" for each in some)
        texts = [each[-1].content for each in some]
        for kind in ("function", "JSON", "list", "rans", "how", "Summarize"):
            assert any(kind in text for text in texts), kind
        assert min(map(len, texts)) < 60
        assert max(map(len, texts)) > 300


def test_a_jsonl_file_has_one_conversation_a_line(tmp_path: Path) -> None:
    several = _asked(("system", "Be brief."), ("user", "One\u2028two\n"), ("assistant", "x"), ("tool", "y"), source="mine")
    name = _jsonl(tmp_path, "\ufeff" + json.dumps(_asked(("user", "# é"))), "  \r", json.dumps(several, ensure_ascii=False))
    loaded = prompts.load(name)
    assert loaded.conversations == (
        (Message("user", "# é"),),
        (Message("system", "Be brief."), Message("user", "One\u2028two\n"), Message("assistant", "x"), Message("tool", "y")),
    )
    assert loaded.prompts == ("# é", "system: Be brief.\nuser: One\u2028two\n\nassistant: x\ntool: y")


def test_conversations_are_known_by_roles_and_contents_and_are_no_plain_prompts(tmp_path: Path) -> None:
    sets = [
        [_asked(("user", "a"))], [_asked(("tool", "a"))], [_asked(("user", "b"))], [_asked(("user", "a"))] * 2,
        [_asked(("system", "a"), ("user", "a"))],
    ]  # fmt: skip
    hashes = [prompts.load(_jsonl(tmp_path, *each)).content_hash(batch) for each in sets for batch in (1, 8)]
    assert len(set(hashes)) == len(hashes)
    shown = prompts.load(_jsonl(tmp_path, *sets[0]))
    assert shown.content_hash() not in (*hashes[1:], PromptSet(name="x", prompts=shown.prompts).content_hash())
    assert prompts.load(_jsonl(tmp_path, {**sets[0][0], "id": 3})).content_hash() == hashes[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: not JSON ("),
        ("# a comment", "line 2: not JSON ("),
        ("[" * 100_000, "line 2: not JSON ("),
        ("[]", "line 2: no messages; write {"),
        ({"prompt": "Hello"}, "line 2: no messages; write {"),
        ({"messages": []}, "line 2: no messages; write {"),
        ({"messages": "Hello"}, "line 2: no messages; write {"),
        ({"messages": ["Hello"]}, "line 2, message 1: no role; write {"),
        ({"messages": [{"content": "Hello"}]}, "line 2, message 1: no role; write {"),
        (_asked(("User", "Hello")), "line 2, message 1: unknown role 'User'; did you mean 'user'?"),
        (_asked(("system", "Hello"), ("bot", "x")), "line 2, message 2: unknown role 'bot'; known: assistant, "),
        (_asked(("user", "")), "line 2, message 1: no content"),
        (_asked(("user", " \n")), "line 2, message 1: no content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "line 2, message 1: no content"),
        ({"messages": [{"role": "user"}]}, "line 2, message 1: no content"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "line 2, message 1: 'name' is not given to"),
        (_asked(("user", "x"), ("assistant", "y")), "line 2: the last message is of role 'assistant', so nothing is asked"),
        (_asked(("system", "x")), "line 2: the last message is of role 'system', so nothing is asked"),
        (_asked(("user", "x"), tools=[{}]), "line 2: 'tools' are not given to the template"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_conversation_is_named(line: object, words: str, tmp_path: Path) -> None:
    name = _jsonl(tmp_path, _asked(("user", "fine")), line)
    with pytest.raises(UsageError) as caught:
        prompts.load(name)
    assert str(caught.value).startswith(f"prompt file {name!r}, {words}")
    assert "\n" not in str(caught.value)


def test_a_file_without_conversations_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no conversations; write one a line"):
        prompts.load(_jsonl(tmp_path, "", " "))
    with pytest.raises(UsageError, match=r"^prompt file 'none\.jsonl' does not exist; give a JSONL file with one conversation"):
        prompts.check_name("none.jsonl")
