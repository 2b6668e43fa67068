"""Where BOS and separators stand: the rule of a stream of tokens."""

import dataclasses
from typing import Any, Literal

from dictionary_learning.errors import ConfigError

BosPolicy = Literal["document", "context", "both", "none"]


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Which ids are put in, and where."""

    bos: int | None
    """The BOS token, where any is put in."""
    at_document: bool
    """Whether each document begins with BOS."""
    at_context: bool
    """Whether each context begins with BOS."""
    separator: int | None
    """Ends each document."""


def special_tokens(
    tokenizer: Any, *, bos: BosPolicy | None, separator: int | str | None, add_special_tokens: bool
) -> SpecialTokens:
    """Returns the rule that the settings mean for a tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer; None where ids are given and nothing is put in.
        bos: what begins with BOS; None for both documents and contexts where the tokenizer has a BOS token.
        separator: ends each document: "eos", "bos", a token or its id; "auto" for EOS where no BOS begins documents; None for nothing.
        add_special_tokens: whether anything is put in.

    Raises:
        ConfigError: the settings contradict each other, or the tokenizer has no such token.
    """
    if bos not in (None, "document", "context", "both", "none"):
        raise ConfigError(f"Got bos={bos!r}; it is 'document', 'context', 'both' or 'none'.")
    if not add_special_tokens and (bos not in (None, "none") or separator not in ("auto", None)):
        raise ConfigError(
            f"Got add_special_tokens=False with bos={bos!r} and separator={separator!r}; leave one of them out."
        )
    known = None if tokenizer is None else tokenizer.bos_token_id
    if known is None and bos in ("document", "context", "both"):
        raise ConfigError(f"Got bos={bos!r}, and the tokenizer has no BOS token. Set bos='none', or a separator.")
    if not add_special_tokens or known is None:
        bos = "none"
    at_document, at_context = bos in (None, "both", "document"), bos in (None, "both", "context")
    if separator == "auto":
        ends = add_special_tokens and not at_document
        separator = tokenizer.eos_token_id if ends and tokenizer is not None else None
    begins = known if at_document or at_context else None
    return SpecialTokens(begins, at_document, at_context, _id_of(tokenizer, separator))


def _id_of(tokenizer: Any, token: int | str | None) -> int | None:
    if token is None or isinstance(token, int):
        return token
    if tokenizer is None:
        raise ConfigError(f"Got separator={token!r} without a tokenizer. Give the token's id.")
    named = {"eos": tokenizer.eos_token_id, "bos": tokenizer.bos_token_id}
    found = named[token] if token in named else tokenizer.get_vocab().get(token)
    if found is None:
        raise ConfigError(f"Got separator={token!r}, which the tokenizer does not have. Give another token, or None.")
    return found
