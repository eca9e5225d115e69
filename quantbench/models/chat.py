"""Chat templates: they make of a conversation the text that a model was trained to go on from.

A template comes with the model, so it is untrusted: it runs in jinja2's immutable sandbox, without a loader and so without
files, and sees plain texts only; ``models.rendered`` bounds what it takes. What it finds there is what transformers gives it
(utils/chat_template_utils.py), but for the date: that is fixed, since some templates write today's into the prompt, and the
same scenario would be another tomorrow.

A template is a part of its checkpoint's files, and of their hash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quantbench.core.conversation import Conversation, Message
from quantbench.core.errors import ModelError
from quantbench.core.outside import read_text
from quantbench.core.text import one_line
from quantbench.models.config import read_config

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_KEY = "tokenizer.chat_template"
"""Where a GGUF header has it."""

_DATE = datetime(2024, 7, 26, tzinfo=UTC)
"""The date that Llama's own templates write where nobody tells them another."""

_LONGEST_REASON = 200
PLAIN = "name a set of plain prompts such as 'mixed'"
NO_TEMPLATE = f"{{}} has no chat template, so it cannot be given conversations; {PLAIN}"


def folder_template(folder: Path) -> str:
    """The chat template of a checkpoint folder, empty if it has none; of several, the default one, as transformers chooses.

    ModelError if its file cannot be read.
    """
    path = folder / TEMPLATE_FILE
    if path.is_file():
        try:
            return read_text(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} cannot be read as UTF-8 text ({error}); download or copy it again") from error
    config = folder / "tokenizer_config.json"
    found = read_config(config).get("chat_template") if config.is_file() else None
    if isinstance(found, list):
        named = (each.get("template") for each in found if isinstance(each, dict) and each.get("name") == "default")
        found = next(named, None)
    return found if isinstance(found, str) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A model's template as it was found, empty if it has none. ``special`` and ``owner`` are as in ChatTemplate."""

    source: str
    special: Mapping[str, str]
    owner: str


class ChatTemplate:
    """A model's template, ready to render. ``special`` are its special tokens by name, ``bos_token`` and the like."""

    def __init__(self, source: str, special: Mapping[str, str], owner: str) -> None:
        """``owner`` is the model's name, for messages. ModelError if ``source`` is empty, or no template."""
        self._special = special
        self._head = f"the chat template of {owner}"
        if not source:
            raise ModelError(NO_TEMPLATE.format(owner))
        try:
            self._template = _environment().from_string(source)
        except Exception as error:  # a template is anybody's code, and jinja2 does not wrap all that it stumbles over
            raise ModelError(f"{self._head} cannot be read ({_reason(error)}); {PLAIN}") from error

    def render(self, conversation: Conversation) -> str:
        """The text up to where the assistant's answer begins; ModelError with the template's own words if it refuses.

        Where it takes no system message, that is put in front of the first user message, as the makers of such models advise.
        """
        try:
            return self._rendered(conversation)
        except Exception as error:  # a template is anybody's code: it may raise whatever it likes
            with suppress(Exception):
                return self._rendered(_without_system(conversation))
            raise ModelError(f"{self._head} refuses it ({_reason(error)}); change it, or {PLAIN}") from error

    def _rendered(self, conversation: Conversation) -> str:
        messages = [{"role": message.role, "content": message.content} for message in conversation]
        return str(
            self._template.render(messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._special)
        )


def _without_system(conversation: Conversation) -> Conversation:
    """The same with a leading system message in the user's; ValueError if there is no such pair."""
    (system, user), rest = conversation[:2], conversation[2:]
    if (system.role, user.role) != ("system", "user"):
        raise ValueError("no system message")
    return (Message("user", f"{system.content}\n\n{user.content}"), *rest)


def _reason(error: Exception) -> str:
    """What a template or jinja2 said, as one short line."""
    said = one_line(str(error)) or type(error).__name__
    if isinstance(error, MemoryError):
        return "it takes more memory than a template may"
    if type(error).__name__ == "UndefinedError":
        said = f"it needs what it is not given: {said}"
    return said if len(said) <= _LONGEST_REASON else said[: _LONGEST_REASON - 3] + "..."


def _environment() -> Any:
    """What a template runs in."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):  # type: ignore[misc]  # jinja2 is not followed where types are checked
        """``{% generation %}``, which marks what the assistant said, for training."""

        tags = frozenset(("generation",))

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    class Plain(Namespace):  # type: ignore[misc]
        """A namespace whose attributes are none that Python itself looks up."""

        def __init__(*args: Any, **attributes: Any) -> None:  # ``self`` may be an attribute's name
            self, *given = args
            found = dict(*given, **attributes)
            for name in found:
                _refuse_private(name)
            Namespace.__init__(self, found)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private(name)
            super().__setitem__(name, value)

    def _refuse_private(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace may not have the attribute {name!r}")

    def raise_exception(message: object) -> None:
        raise TemplateError(str(message))

    def plain_dict(*pairs: Any, **values: Any) -> dict[Any, Any]:
        return dict(*pairs, **values)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _as_json
    environment.globals |= {
        "dict": plain_dict, "namespace": Plain, "raise_exception": raise_exception, "strftime_now": _DATE.strftime,
    }  # fmt: skip
    return environment


def _as_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where jinja2's own filter escapes for HTML."""
    item, key = separators or (None, None)
    chosen = None if item is None or key is None else (item, key)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=chosen, sort_keys=sort_keys)
