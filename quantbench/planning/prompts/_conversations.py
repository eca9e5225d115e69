"""Conversations from JSONL: one object with ``messages`` a line, and one sentence for whatever is wrong in a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from quantbench.core.conversation import ROLES, Conversation, Message
from quantbench.core.errors import UsageError, unknown_name
from quantbench.core.outside import parse_json

SUFFIX = ".jsonl"
_FORM = '{"messages": [{"role": "user", "content": "..."}]}'
_FIELDS = ("role", "content")
_FOR_TEMPLATES = ("tools", "documents")
"""What templates know besides messages; it is not passed on, so the question would be another one."""

_ASKERS = ("user", "tool")


def read_conversations(text: str, name: str) -> tuple[Conversation, ...]:
    """The conversations of a file's ``text``, whose ``name`` is for messages; blank lines are left out.

    UsageError, with the line, for what is no conversation, and for one that does not end with a question.
    """
    # Not splitlines(): a JSON string may hold U+2028 and the like.
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not numbered:
        raise UsageError(f"prompt set {name!r} has no conversations; write one a line: {_FORM}")
    return tuple(_conversation(line, f"prompt file {name!r}, line {number}") for number, line in numbered)


def _conversation(line: str, place: str) -> Conversation:
    try:
        body = parse_json(line)
    except ValueError as error:
        raise UsageError(f"{place}: not JSON ({error}); write {_FORM}") from error
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{place}: no messages; write {_FORM}")
    for key in _FOR_TEMPLATES:
        if body.get(key):
            raise UsageError(f"{place}: {key!r} are not given to the template, and the answer would be another; leave them out")
    conversation = tuple(_messages(messages, place))
    if conversation[-1].role not in _ASKERS:
        last = conversation[-1].role
        raise UsageError(f"{place}: the last message is of role {last!r}, so nothing is asked; end with one of role 'user'")
    return conversation


def _messages(messages: list[Any], place: str) -> Iterator[Message]:
    for number, message in enumerate(messages, start=1):
        where = f"{place}, message {number}"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UsageError(f"{where}: no role; write {_FORM}")
        role, content = message["role"], message.get("content")
        if role not in ROLES:
            raise UsageError(f"{where}: {unknown_name('role', role, ROLES)}")
        if not isinstance(content, str) or not content.strip():
            raise UsageError(f"{where}: no content, or none that is text; write {_FORM}")
        if others := [key for key in message if key not in _FIELDS]:
            raise UsageError(f"{where}: {others[0]!r} is not given to the template; leave it out")
        yield Message(role, content)
