"""Text and tokens."""

from dictionary_learning.data.source import TextSource
from dictionary_learning.data.text import as_text_source, file_source
from dictionary_learning.data.tokens import TokenBatch, TokenStream

__all__ = ["TextSource", "TokenBatch", "TokenStream", "as_text_source", "file_source"]
