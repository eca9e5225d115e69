"""Conversations: what a chat model is asked, before its template makes a text of it."""

from __future__ import annotations

from dataclasses import dataclass

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """What one of ROLES said."""

    role: str
    content: str


Conversation = tuple[Message, ...]
"""Messages in order; the assistant's answer to the last one is asked for."""


def transcript(conversation: Conversation) -> str:
    """A conversation for readers: a single message as it is, else each after its role."""
    if len(conversation) == 1:
        return conversation[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in conversation)
