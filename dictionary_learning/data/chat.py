"""Conversations, and how they become text."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from dictionary_learning.errors import DataError


@dataclasses.dataclass(frozen=True)
class Chat:
    """How conversations become text: by the template of the model's tokenizer."""

    template: str | None = None
    """A Jinja template in the place of the tokenizer's own."""
    system_prompt: str | None = None
    """Text that is taken out of the conversation, once the template has written it."""
    removal_frequency: float = 1.0
    """The share of the conversations from which `system_prompt` is taken out."""
    seed: int = 0
    """Decides which conversations those are."""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages, which the template of a tokenizer makes text of."""

    messages: list[dict[str, Any]]
    """The turns, each with "role" and "content"."""
    chat: Chat = Chat()
    """How they become text."""

    def render(self, tokenizer: Any) -> str:
        """Returns the text that the model would be given.

        Raises:
            DataError: the tokenizer has no template, or cannot write these messages with it.
        """
        from jinja2 import TemplateError

        template = self.chat.template or getattr(tokenizer, "chat_template", None)
        if template is None:
            raise DataError(
                f"The data holds conversations, and the tokenizer {getattr(tokenizer, 'name_or_path', '') or ''} has no chat template. "
                "Give chat=Chat(template=...), or a model that was trained on conversations."
            )
        try:
            text = tokenizer.apply_chat_template(self.messages, chat_template=self.chat.template, tokenize=False)
        except (TemplateError, ValueError, KeyError, TypeError) as error:
            roles = ", ".join(str(m.get("role")) for m in self.messages)
            raise DataError(
                f"The chat template cannot write a conversation with the roles {roles}: {error}. Leave such conversations out, "
                "or give a template that knows them."
            ) from error
        if self.chat.system_prompt:
            chance = random.Random(f"{self.chat.seed}:{text}")
            text = without_system_prompt(text, self.chat.system_prompt, self.chat.removal_frequency, chance)
        return text


def without_system_prompt(text: str, system_prompt: str, frequency: float, chance: random.Random) -> str:
    """Returns the text with the prompt taken out, or, at one minus the frequency, as it is."""
    return text.replace(system_prompt, "") if chance.random() < frequency else text


_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
"""The roles of ShareGPT's records, by the names that templates know."""


def messages_of(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the turns of a conversation as templates know them.

    Raises:
        DataError: they have other keys.
    """
    if all("role" in turn for turn in turns):
        return [dict(turn) for turn in turns]
    if all("from" in turn and "value" in turn for turn in turns):
        return [{"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]} for turn in turns]
    raise DataError(
        f"A conversation's turns have the keys {', '.join(turns[0])}; 'role' and 'content' are needed. Rename them, or give text."
    )
