"""Attributes of `ActivationBuffer` by their names in dictionary-learning 0.1."""

import functools
from typing import Any

from dictionary_learning.errors import ConfigError

_GONE = {
    "activations": "rows that are not served yet are in no fixed order; iterate over the buffer",
    "read": "no row is served twice; iterate over the buffer",
    "text_stream": "the text is closed with the buffer",
}


def older_attribute(buffer: Any, name: str) -> Any:
    """Returns an attribute of a buffer of dictionary-learning 0.1.

    Raises:
        AttributeError: The buffer has none of this name.
    """
    if name in _GONE:
        raise AttributeError(f"ActivationBuffer has no `{name}`: {_GONE[name]} (docs/migrating.md).")
    if name == "data":
        return buffer.tokens.source if hasattr(buffer.tokens, "source") else buffer.tokens
    if name == "submodule":
        return buffer.sites[0] if len(buffer.sites) == 1 else buffer.sites
    if name == "d_submodule":
        widths = set(buffer.widths.values())
        return widths.pop() if len(widths) == 1 else buffer.widths
    if name == "remove_bos":
        return buffer.filter.exclude_first
    if name == "remove_high_norm":
        return buffer.filter.max_norm_multiple
    if name == "add_special_tokens":
        return bool(buffer.config["add_special_tokens"])
    if name == "text_batch":
        return functools.partial(_text_batch, buffer)
    raise AttributeError(f"'{type(buffer).__name__}' has no attribute '{name}'.")


def _text_batch(buffer: Any, batch_size: int | None = None) -> list[str]:
    """Returns the texts of the next contexts, which are consumed."""
    tokenizer = getattr(buffer.model, "tokenizer", None)
    if tokenizer is None:
        raise ConfigError("The model has no tokenizer, so its contexts are no text. Use tokenized_batch().")
    batch = buffer.tokenized_batch(batch_size)
    return [tokenizer.decode(ids[mask.bool()].tolist()) for ids, mask in zip(*batch[:2], strict=True)]
