"""Chat templates that take all they can get: the sandbox does not bound them, a process with limits does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType, GGUFWriter

import quantbench
from quantbench.core.conversation import Conversation, Message
from quantbench.core.errors import ModelError, QuantbenchError
from quantbench.models import rendered
from quantbench.models.chat import Template
from quantbench.models.checkpoint import resolve
from quantbench.models.rendered import rendered as render
from quantbench.runtimes import open_tokenizer
from quantbench.runtimes.llama_cpp.files import f16_file

TALK: Conversation = (Message("user", "Hello"),)
BOMB = "{{ 'x' * 10**10 }}"
"""jinja2 computes it when it compiles the template."""


def _render(source: str, *talks: Conversation) -> list[str]:
    return render(Template(source=source, special={"eos_token": "</s>"}, owner="org/model"), talks or [TALK], "talks")


def _refusal(source: str) -> str:
    with pytest.raises(ModelError) as caught:
        _render(source)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    return str(caught.value)


def test_an_honest_template_gives_what_it_gives_in_this_process() -> None:
    source = "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}{% endfor %}"
    assert _render(source, TALK, (Message("user", "é 漢 \ud800\n"), Message("assistant", "<b>"))) == [
        "user: Hello</s>", "user: é 漢 \ud800\n</s>assistant: <b></s>",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (BOMB, "refuses it (it takes more memory than a template may)"),
        (
            "{% set ns = namespace(x='ab') %}{% for n in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "refuses it (it takes more memory than a template may)",
        ),
        ("{{ '%1000000000000d' % messages | length }}", "refuses it ("),
        ("{{ messages[0].content.ljust(10**10) }}", "refuses it (it takes more memory than a template may)"),
        ("{{ messages[0].content * 1000000 }}", "makes 5,000,000 characters of it; name a set of plain prompts"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "refuses it ("),
        ("{{" + "(" * 100_000 + "1" + ")" * 100_000 + "}}", "the chat template of org/model cannot be "),
    ],
    ids=["a constant", "doubling", "a width", "padding", "a long text", "recursion", "depth"],
)
def test_what_takes_too_much_is_refused_in_one_sentence(source: str, words: str) -> None:
    assert words in _refusal(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
    ],
    ids=["a loop", "a constant"],
)
def test_what_takes_too_long_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendered, "_TIMEOUT_S", 1.0)
    assert _refusal(source) == (
        "the chat template of org/model cannot be used for the conversations of 'talks' (took more than 1 s and was stopped); "
        "name a set of plain prompts such as 'mixed'"
    )


def test_a_model_with_such_a_template_is_not_measured_on_conversations(
    chatty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(chatty, "greedy")
    Path("greedy", "chat_template.jinja").write_text(BOMB)
    Path("talks.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Hello"}]}))
    settings: dict[str, Any] = {"prompts": "talks.jsonl", "profile": "quick", "engine": "inline", "no_probes": True}
    with pytest.raises(QuantbenchError, match=r"conversation 1 of '.*talks.*': the chat template of .*greedy refuses it"):
        quantbench.measure("./greedy", "torch/bf16", results=None, **settings)


@pytest.mark.usefixtures("artifacts")
def test_the_template_of_a_gguf_file_is_not_compiled_while_its_vocabulary_is_read(tmp_path: Path) -> None:
    """llama-cpp-python would, as it opens the file."""
    from gguf import GGUFReader

    path = tmp_path / "greedy.gguf"
    writer = GGUFWriter(path, "llama")
    for name, entry in GGUFReader(f16_file(resolve("canary"))).fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = entry.types[-1] if entry.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, entry.contents(), entry.types[0], inner)
    writer.add_string("tokenizer.chat_template", "{{ 9 ** (9 ** 9) }}")  # for hours
    writer.add_string("tokenizer.chat_template.tool_use", "{{ 9 ** (9 ** 9) }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer, canary = open_tokenizer(resolve(str(path))), open_tokenizer(resolve("canary"))

    assert tokenizer.encode("Hello there") == canary.encode("Hello there")
    assert tokenizer.template.source == "{{ 9 ** (9 ** 9) }}"
