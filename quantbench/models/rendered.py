"""Conversations through a model's template, in a process of its own: a template is a program, and comes from anybody.

The sandbox of ``chat`` keeps it from files and from Python's own objects. Nothing in it keeps a template from taking all time
and memory, even before it is run: jinja2 computes constants such as ``'a' * 10**10`` as it compiles. Both have limits here.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from quantbench.core.children import answer, call
from quantbench.core.conversation import Conversation, Message
from quantbench.core.errors import ChildError, MissingDependency, ModelError, OutOfMemoryError
from quantbench.core.install import install_hint
from quantbench.models.chat import PLAIN, ChatTemplate, Template

_TIMEOUT_S = 60.0
"""For all conversations of a set, which take milliseconds; the process has to start, though, and the machine may be busy."""

_MOST_BYTES = 2**30
"""Of address space: a process that has imported jinja2 has a twentieth of it."""

_LONGEST, _TIMES = 1_000_000, 10
"""Characters that a text may have, and those of its conversation so many times on top."""


def rendered(template: Template, conversations: Sequence[Conversation], name: str) -> list[str]:
    """The text that the template makes of each conversation; ``name`` is that of their set, for messages.

    ModelError where there is no template, or it refuses one, or takes too long, too much memory or too long a text for it.
    MissingDependency without jinja2.
    """
    if find_spec("jinja2") is None:
        raise MissingDependency(f"conversations need jinja2, not installed; {install_hint('torch')}")
    talks = [[[message.role, message.content] for message in conversation] for conversation in conversations]
    request = {"source": template.source, "special": dict(template.special), "owner": template.owner, "conversations": talks}
    task = f"the chat template of {template.owner}"
    try:
        told = call(__name__, request, task, timeout_s=_TIMEOUT_S)
    except (ChildError, OutOfMemoryError) as error:
        reason = error.reason if isinstance(error, ChildError) else "it ran out of memory"
        raise ModelError(f"{task} cannot be used for the conversations of {name!r} ({reason}); {PLAIN}") from error
    if "refused" in told:
        raise ModelError(f"conversation {told['refused']} of {name!r}: {told['reason']}")
    texts: list[str] = told["texts"]
    return texts


def _render(request: Mapping[str, Any]) -> dict[str, Any]:
    """The texts, or the number of the first conversation that is refused, with the reason."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    texts: list[str] = []
    try:
        template = ChatTemplate(request["source"], request["special"], request["owner"])
        for talk in request["conversations"]:
            text = template.render(tuple(Message(role, content) for role, content in talk))
            if len(text) > _LONGEST + _TIMES * sum(len(content) for _, content in talk):
                reason = f"the chat template of {request['owner']} makes {len(text):,} characters of it; {PLAIN}"
                return {"refused": len(texts) + 1, "reason": reason}
            texts.append(text)
    except ModelError as error:
        return {"refused": len(texts) + 1, "reason": str(error)}
    return {"texts": texts}


if __name__ == "__main__":
    answer(_render)
