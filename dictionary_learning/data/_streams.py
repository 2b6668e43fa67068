"""Contexts from any data object: every consumer of data (buffer, cache, evaluation) calls this."""

from typing import Any, Literal, Protocol, get_args, runtime_checkable

from torch import nn

from dictionary_learning._border import checked
from dictionary_learning._types import TextLike
from dictionary_learning.data._source import check_choice
from dictionary_learning.data._text import as_source
from dictionary_learning.data._tokens import TokenStream
from dictionary_learning.errors import ConfigError, DataError, check_own

EndOfData = Literal["stop", "repeat", "error"]
"""What happens at the end of the data: the iteration ends, the data is read again, or an error."""


_DEFAULTS = {"ctx_len": 128, "pack": True, "add_special_tokens": True, "text_column": "text"}
"""What the consumers of data give by default, which says nothing about a stream."""


@runtime_checkable
class ContextSource(Protocol):
    """A `TokenStream`, an `ExampleStream`, or any class with these methods."""

    source: Any
    ctx_len: int
    pack: bool

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of BOS, separators and padding."""
        ...

    def take(self, n: int) -> Any:
        """Returns the next n contexts, or None at the end of the data."""

    def restart(self) -> None:
        """Returns to the first context."""

    def state_dict(self) -> dict[str, Any]:
        """Returns everything the next contexts depend on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a saved state."""


@checked()
def as_context_source(
    data: TextLike,
    tokenizer: Any,
    *,
    ctx_len: int,
    model: Any = None,
    text_column: str = "text",
    end_of_data: EndOfData = "stop",
    fresh: bool = False,
    **options: Any,
) -> ContextSource:
    """Returns the contexts of any data object.

    Args:
        data: Any data that `as_source` accepts; or a stream of contexts, which is returned as it
            is, and whose own settings apply: to ask for others raises.
        ctx_len: Tokens in a context.
        model: The model that reads the contexts: ids without an embedding are refused.
        end_of_data: What the consumer does at the end of the data.
        fresh: Reads the data from its first document, even if it was read from before.
        options: Further options of `TokenStream`.

    Raises:
        ConfigError: The data is to be repeated, and can be read only once; or it is a stream with
            other settings.
    """
    # `take` alone does not make a stream: data sets have it too
    if isinstance(data, ContextSource):
        stream: ContextSource = data
        asked = {"ctx_len": ctx_len, "text_column": text_column, **options}
        check_own(
            f"the {type(data).__name__}", {n: (v, _DEFAULTS.get(n), getattr(data, n, None)) for n, v in asked.items()}
        )
    else:
        source = as_source(data, text_column=text_column)
        # an iterator cannot be read again, so it continues
        source = source.fresh() if fresh and source.repeatable else source
        stream = TokenStream(source, tokenizer, ctx_len=ctx_len, n_embeddings=_n_embeddings(model), **options)
    if end_of_data == "repeat" and not getattr(stream.source, "repeatable", True):
        raise ConfigError(
            f"Got end_of_data='repeat', and {stream.source.name} can be read only once. Pass a list, a file or a data "
            "set, or set end_of_data to 'stop' or 'error'."
        )
    return stream


@checked()
def as_token_stream(data: TextLike, tokenizer: Any, *, ctx_len: int, **options: Any) -> TokenStream:
    """Returns the contexts of text, conversations or token ids; see `as_context_source`.

    Raises:
        DataError: The data is a stream of other inputs than tokens.
    """
    stream = as_context_source(data, tokenizer, ctx_len=ctx_len, **options)
    if not isinstance(stream, TokenStream):
        raise DataError(f"Got a {type(stream).__name__}; contexts of tokens are needed. Pass text, or a TokenStream.")
    return stream


def check_end_of_data(value: str) -> None:
    """Raises a `ConfigError` for an option `end_of_data` that is none of the choices."""
    check_choice("end_of_data", value, get_args(EndOfData))


def _n_embeddings(model: Any) -> int | None:
    """Returns how many ids a model, or every model of a set, has embeddings for."""
    models = getattr(model, "models", None)
    if isinstance(models, dict):
        return min((n for n in map(_n_embeddings, models.values()) if n is not None), default=None)
    try:
        embedding = getattr(model, "module", model).get_input_embeddings()
    except (AttributeError, NotImplementedError):  # not a model of transformers
        return None
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None
