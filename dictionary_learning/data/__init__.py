"""Text and tokens: `as_source` reads any data, and `as_token_stream` makes contexts of it."""

from typing import TYPE_CHECKING

from dictionary_learning._lazy import lazy_names
from dictionary_learning.data._document import Chat, Conversation, Tokenized, TokenRow
from dictionary_learning.data._examples import ExampleBatch, ExampleStream
from dictionary_learning.data._mixture import mix
from dictionary_learning.data._pretokenized import pretokenize
from dictionary_learning.data._source import Source, TextSource
from dictionary_learning.data._streams import (
    ContextSource,
    EndOfData,
    as_context_source,
    as_token_stream,
    check_end_of_data,
)
from dictionary_learning.data._text import as_source, as_text_source, file_source
from dictionary_learning.data._token_batch import TokenBatch, position_mask, real_position_mask
from dictionary_learning.data._tokens import TokenStream

if TYPE_CHECKING:
    from dictionary_learning.compat._generators import (
        chunk_and_tokenize,
        hf_dataset_to_generator,
        hf_mixed_dataset_to_generator,
        hf_sequence_packing_dataset_to_generator,
        simple_hf_mixed_dataset_to_generator,
        zst_to_generator,
    )

__all__ = [
    "Chat",
    "ContextSource",
    "Conversation",
    "EndOfData",
    "ExampleBatch",
    "ExampleStream",
    "Source",
    "TextSource",
    "TokenBatch",
    "TokenRow",
    "TokenStream",
    "Tokenized",
    "as_context_source",
    "as_source",
    "as_text_source",
    "as_token_stream",
    "check_end_of_data",
    "chunk_and_tokenize",
    "file_source",
    "hf_dataset_to_generator",
    "hf_mixed_dataset_to_generator",
    "hf_sequence_packing_dataset_to_generator",
    "mix",
    "position_mask",
    "pretokenize",
    "real_position_mask",
    "simple_hf_mixed_dataset_to_generator",
    "zst_to_generator",
]

# `compat` imports this package, so its names are looked up when they are used
_OLD = [name for name in __all__ if name.endswith("_generator") or name == "chunk_and_tokenize"]
__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(_OLD, "dictionary_learning.compat._generators"))
