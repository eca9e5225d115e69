"""Chat templates: what transformers makes of conversations comes out, in both runtimes, and no template is trusted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import quantbench
from quantbench.core.conversation import Conversation, Message, transcript
from quantbench.core.errors import ModelError, UnsupportedError
from quantbench.core.job import Task
from quantbench.core.scenario import Scenario, Variant
from quantbench.models.chat import ChatTemplate, folder_template
from quantbench.models.checkpoint import resolve
from quantbench.models.rendered import rendered
from quantbench.models.tokenizer import completion_texts, encode_prompts
from quantbench.planning.case import Cases
from quantbench.planning.prompts import load
from quantbench.runtimes import has_template, open_tokenizer
from quantbench.runtimes.llama_cpp.files import f16_file

from .conftest import CHAT_TEMPLATE

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
EVERYTHING = """
{%- set ns = namespace(count=0, last='') -%}
{%- macro tag(name) -%}<{{ name }}>{%- endmacro -%}
{%- if tools is not none %}tools{% endif -%}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
    {%- if message.role == 'assistant' %}
        {% generation %}{{ tag('a') }}{{ message.content }}{% endgeneration %}

    {% else %}
{{ tag('u') }}{{ message | tojson }}{{ dict(a=1) | tojson(indent=2) }}
    {% endif %}
{%- endfor %}
{{ ns.count }}{{ unk_token | default('no unk') }}{% if documents %}never{% endif %}
"""
"""Whatever else templates use; the white space is part of it."""

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TALKS: dict[str, Conversation] = {
    "question": (Message("user", "Why <b>&</b> \"why\"?  "),),
    "turns": (Message("user", "One é 漢\n"), Message("assistant", " Two "), Message("user", "Three </s> four")),
    "system": (Message("system", "Be brief."), Message("user", "Hello")),
}


def _plain(conversation: Conversation) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in conversation]


def _theirs(template: str, conversation: Conversation) -> str:
    """What transformers renders."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), _ = render_jinja_template(
        conversations=[_plain(conversation)], chat_template=template, add_generation_prompt=True, **SPECIAL
    )
    return str(text)


def _render(template: str, conversation: Conversation = TALKS["question"]) -> str:
    return ChatTemplate(template, SPECIAL, "org/model").render(conversation)


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("template", [CHATML, CHAT_TEMPLATE, EVERYTHING], ids=["chatml", "the canary's", "everything"])
def test_it_renders_what_transformers_renders(template: str, talk: str) -> None:
    assert _render(template, TALKS[talk]) == _theirs(template, TALKS[talk])


def test_every_shipped_conversation_renders_also_where_no_system_message_is_taken() -> None:
    chat = load("chat").conversations
    with pytest.raises(Exception, match="System role not supported"):
        _theirs(GEMMA, next(each for each in chat if each[0].role == "system"))
    for conversation in chat:
        for template in (CHATML, GEMMA):
            text = _render(template, conversation)
            assert all(message.content.strip() in text for message in conversation)


def test_a_system_message_that_is_refused_is_put_in_front_of_the_users() -> None:
    assert _render(GEMMA, TALKS["system"]) == _theirs(GEMMA, (Message("user", "Be brief.\n\nHello"),))


def test_the_date_is_always_the_same() -> None:
    """Else the prompts of a scenario would be others tomorrow, under the same key."""
    assert _render("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('No such role here') }}", "refuses it (No such role here); change it, or name a set of plain"),
        ("{{ enable_thinking.level }}", "refuses it (it needs what it is not given: 'enable_thinking' is undefined)"),
        ("{{ messages[0].content + 1 }}", "refuses it (can only concatenate str"),
        ("{{ 1 / 0 }}", "refuses it (division by zero)"),
        ("{{ raise_exception('a\n\x1b[31mred ' + 'long ' * 200) }}", "refuses it (a [31mred long long"),
        ("{% if %}", "cannot be read (Expected an expression"),
        ("{% unknown %}", "cannot be read (Encountered unknown tag 'unknown'"),
        ("", "has no chat template, so it cannot be given conversations; name a set of plain prompts such as 'mixed'"),
        # what it may not do
        ("{{ ''.__class__.__mro__ }}", "refuses it (access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "refuses it ("),
        ("{{ '{0.__class__.__init__.__globals__}'.format(messages) }}", "refuses it ("),
        ("{{ messages | map(attribute='__class__') | map(attribute='__mro__') | list }}", "refuses it ("),
        ("{{ raise_exception.__globals__['__builtins__'] }}", "refuses it ("),
        ("{{ strftime_now.__self__.__class__.__base__.__subclasses__() }}", "refuses it ("),
        ("{{ self.__init__.__globals__ }}", "refuses it ("),
        ("{% import 'os' as os %}", "refuses it (no loader for this environment"),
        ("{{ lipsum.__globals__.os.popen('id') }}", "refuses it ("),
        ("{{ messages.append(1) }}", "refuses it ("),
        ("{% set ns = namespace(a=1) %}{% set ns.__html__ = messages %}", "refuses it ("),
        ("{{ namespace(__html__=1) }}", "refuses it ("),
        ("{% include '/etc/passwd' %}", "refuses it (no loader for this environment"),
        ("{{ range(10000000) | list }}", "refuses it (Range too big"),
    ],
)
def test_what_it_refuses_or_may_not_do_is_one_short_sentence(template: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        _render(template)
    sentence = str(caught.value)
    assert words in sentence
    assert "org/model" in sentence
    assert sentence.isprintable()
    assert len(sentence) < 400


@pytest.mark.parametrize("template", ["{{ '' | attr('__class__') }}", "{{ ('{0.__class__}' | attr('format'))(messages) }}"])
def test_what_a_filter_may_not_reach_is_not_there(template: str) -> None:
    assert _render(template) == ""


# --- where a template is

RAG = {"name": "rag", "template": "b"}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, ""),
        ({"tokenizer_config.json": {}}, ""),
        ({"tokenizer_config.json": {"chat_template": None}}, ""),
        ({"tokenizer_config.json": {"chat_template": "a"}}, "a"),
        ({"tokenizer_config.json": {"chat_template": [RAG, {"name": "default", "template": "c"}]}}, "c"),
        ({"tokenizer_config.json": {"chat_template": [RAG]}}, ""),
        ({"tokenizer_config.json": {"chat_template": "a"}, "chat_template.jinja": "{{ d }}"}, "{{ d }}"),
    ],
)  # fmt: skip
def test_a_folder_has_the_template_that_transformers_would_take(files: dict[str, Any], found: str, tmp_path: Path) -> None:
    for name, body in files.items():
        (tmp_path / name).write_text(body if isinstance(body, str) else json.dumps(body))
    assert folder_template(tmp_path) == found
    assert has_template(tmp_path) == bool(found)


def test_a_template_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"chat_template\.jinja cannot be read as UTF-8 text"):
        folder_template(tmp_path)


# --- with the canary's tokenizer


CHAT = Task(prompts_name="talks", prompts=tuple(TALKS), conversations=tuple(TALKS.values()), reference=None)


def _ids_of_transformers(folder: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    oracle = AutoTokenizer.from_pretrained(folder)
    return [
        oracle.apply_chat_template(_plain(each), add_generation_prompt=True, tokenize=True, return_dict=False)
        for each in CHAT.conversations
    ]


def test_the_ids_are_those_of_transformers_with_one_beginning_of_sequence(chatty: Path) -> None:
    found = encode_prompts(open_tokenizer(resolve(str(chatty))), CHAT)
    assert found == _ids_of_transformers(chatty)
    assert [(ids[0], ids.count(1)) for ids in found] == [(1, 1)] * len(TALKS)
    assert all(2 in ids for ids in found)


@pytest.mark.usefixtures("artifacts")
def test_a_gguf_file_gives_the_same_ids_by_the_template_in_its_header(chatty: Path) -> None:
    path = f16_file(resolve(str(chatty)))
    ours, theirs = open_tokenizer(resolve(str(chatty))), open_tokenizer(resolve(str(path)))
    shipped = load("chat")
    every = Task(
        prompts_name="all", prompts=(), conversations=(*CHAT.conversations, *shipped.conversations), reference=None
    )  # fmt: skip
    assert has_template(path)
    texts, expected = (rendered(each.template, every.conversations, "all") for each in (theirs, ours))
    assert texts == expected
    assert encode_prompts(theirs, every) == encode_prompts(ours, every)
    assert completion_texts(theirs, every) == completion_texts(ours, every)


def test_a_server_that_puts_a_beginning_of_sequence_in_front_reads_the_same_ids(chatty: Path) -> None:
    tokenizer = open_tokenizer(resolve(str(chatty)))
    texts = completion_texts(tokenizer, CHAT)
    assert [tokenizer.encode(text) for text in texts] == encode_prompts(tokenizer, CHAT)
    assert not any(text.startswith("<s>") for text in texts)
    assert completion_texts(tokenizer, Task(prompts_name="two", prompts=("<s>a", "b"), reference=None)) == ("<s>a", "b")


def test_what_a_model_without_a_template_is_asked_is_named_with_its_number() -> None:
    tokenizer = open_tokenizer(resolve("canary"))
    with pytest.raises(ModelError, match=r"^conversation 1 of 'talks': canary has no chat template"):
        encode_prompts(tokenizer, CHAT)


def test_the_conversation_that_is_refused_is_named_by_its_number(chatty: Path, tmp_path: Path) -> None:
    shutil.copytree(chatty, tmp_path / "picky")
    (tmp_path / "picky" / "chat_template.jinja").write_text(
        "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}"
    )
    with pytest.raises(ModelError, match=r"^conversation 2 of 'talks': the chat template of .*picky refuses it \(one question"):
        encode_prompts(open_tokenizer(resolve(str(tmp_path / "picky"))), CHAT)


def test_readers_see_a_single_message_as_it_is_and_several_with_their_roles() -> None:
    assert [transcript(each) for each in TALKS.values()] == [
        "Why <b>&</b> \"why\"?  ",
        "user: One é 漢\n\nassistant:  Two \nuser: Three </s> four",
        "system: Be brief.\nuser: Hello",
    ]


# --- from end to end


@pytest.mark.usefixtures("artifacts")
def test_every_variant_reads_the_ids_of_the_originals_template(
    chatty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = (json.dumps({"messages": _plain(each)}) for each in TALKS.values())
    (tmp_path / "short.toml").write_text('[methods]\ntorch = ["bf16"]\n[conditions]\nanswer_tokens = 4\n')
    (tmp_path / "talks.jsonl").write_text("\n".join(lines), encoding="utf-8")
    settings: dict[str, Any] = {
        "prompts": "talks.jsonl", "profile": "quick", "output_tokens": 4, "engine": "inline", "no_probes": True, "threads": 1,
        "no_energy": True, "results": "mine", "matrix": "short.toml",
    }  # fmt: skip
    for variant in ("torch/bf16", "gguf/q8_0"):
        found = quantbench.measure(chatty, variant, **settings)
        assert 0 < found.kld_mean < 0.1
    outputs = pd.read_parquet(tmp_path / "mine" / "outputs").sort_values(["scenario_id", "index"])
    assert list(outputs.scenario_id.unique()) == ["chatty/gguf-q8_0/talks", "chatty/torch-bf16/talks"]
    for _, rows in outputs.groupby("scenario_id"):
        assert [list(ids) for ids in rows.prompt_tokens] == _ids_of_transformers(chatty)
        assert list(rows.prompt) == [transcript(each) for each in TALKS.values()]


def test_a_model_without_a_template_is_not_measured_on_conversations_and_says_what_to_do() -> None:
    words = "^canary/torch-bf16/chat: canary has no chat template, so it cannot be given conversations; name a set of plain"
    with pytest.raises(UnsupportedError, match=words):
        quantbench.measure("canary", "torch/bf16", prompts="chat", results=None, engine="inline")


def test_a_server_without_its_checkpoint_is_not_asked_conversations() -> None:
    served = Variant(method="server", precision="as-served")
    case = Cases().of(Scenario(model="http://localhost:1/v1", variant=served, prompts="chat"))
    assert case.failure
    assert case.failure.status == "skipped"
    assert case.failure.reason.startswith("http://localhost:1/v1 is known by its URL only, so its chat template is not")


def test_another_template_is_another_model(chatty: Path, tmp_path: Path) -> None:
    shutil.copytree(chatty, tmp_path / "other")
    (tmp_path / "other" / "chat_template.jinja").write_text(CHATML)
    keys = [
        Cases().of(Scenario(model=str(each), variant=Variant(method="torch", precision="bf16"), prompts="chat")).key
        for each in (chatty, tmp_path / "other")
    ]
    assert keys[0] != keys[1]
