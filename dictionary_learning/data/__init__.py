"""Text and tokens."""

from dictionary_learning.data.text import TextSource, as_text_source, file_source
from dictionary_learning.data.tokens import TokenBatch, TokenStream

__all__ = ["TextSource", "TokenBatch", "TokenStream", "as_text_source", "file_source"]
