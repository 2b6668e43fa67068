"""Judge and embedder on this machine: a language model of transformers."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning.errors import ModelError
from dictionary_learning.interpretation.explanations._prompts import Prompt

_LONGEST_TEXT = 512
"""Tokens of a text that is embedded."""


class LocalJudge:
    """Asks a language model of transformers by its chat template, and takes the likeliest tokens.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer; without a chat template, questions are plain text.
        name: What its answers are kept under; by default the model's name or path.
        batch_size: Questions that are answered together.
        max_new_tokens: Tokens of an answer at most.
    """

    n_parallel = 1

    @checked()
    def __init__(
        self, model: Any, tokenizer: Any, *, name: str | None = None, batch_size: int = 4, max_new_tokens: int = 256
    ):
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.name = f"local:{name or _name_of(model)} {max_new_tokens}"

    @torch.no_grad()
    def complete(self, prompts: Sequence[Prompt]) -> list[str]:
        """Returns an answer to each question."""
        rows = [self._ids(prompt) for prompt in prompts]
        longest, pad = max(map(len, rows)), _pad_id(self.tokenizer)
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and longest + self.max_new_tokens > limit:
            raise ModelError(
                f"A question has {longest} tokens and an answer {self.max_new_tokens}; {self.name} reads {limit} "
                "together. Show fewer examples (n_shown, texts_per_prompt), or choose another judge."
            )
        # on the left, so that answers begin where questions end
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=self.model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=self.model.device)
        made = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=pad,
        )
        return [self.tokenizer.decode(row[longest:], skip_special_tokens=True) for row in made]

    def _ids(self, prompt: Prompt) -> list[int]:
        system, user = prompt.messages
        if not getattr(self.tokenizer, "chat_template", None):
            return self.tokenizer(f"{system['content']}\n\n{user['content']}\n\n")["input_ids"]
        joined = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}]
        try:
            text = self._templated([system, user])
        except Exception:  # noqa: BLE001  (a template's own; some know no system message)
            text = self._templated(joined)
        # the template has written the special tokens
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _templated(self, messages: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


class LocalEmbedder:
    """Embeds texts by the mean of a model's last hidden states.

    Args:
        model: A model of transformers, a sentence encoder or a language model.
        tokenizer: Its tokenizer.
        name: What its answers are kept under; by default the model's name or path.
    """

    n_parallel = 1

    @checked()
    def __init__(self, model: Any, tokenizer: Any, *, name: str | None = None):
        self.model, self.tokenizer = model, tokenizer
        self.name = f"local:{name or _name_of(model)}"

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Float[Tensor, "n dim"]:
        """Returns the vectors, one text after another."""
        base = getattr(self.model, "base_model", self.model)
        rows: list[Tensor] = []
        for text in texts:
            ids = self.tokenizer(text, truncation=True, max_length=_LONGEST_TEXT)["input_ids"] or [
                _pad_id(self.tokenizer)
            ]
            hidden = base(torch.tensor([ids], device=self.model.device)).last_hidden_state  # (1, n, dim)
            rows.append(hidden[0].float().mean(0))
        return torch.stack(rows).cpu()


def _name_of(model: Any) -> str:
    return str(getattr(model, "name_or_path", "") or type(model).__name__)


def _pad_id(tokenizer: Any) -> int:
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((one for one in known if one is not None), 0)
