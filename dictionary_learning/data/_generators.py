"""Sources with the names that older scripts use: text documents, which resume like any source."""

import dataclasses
import os
import random
from collections.abc import Iterator
from typing import Any

from dictionary_learning.data._document import BadDocument, Chat, TokenRow, remove_system_prompt
from dictionary_learning.data._mixture import mix
from dictionary_learning.data._reading import Mark, WrappingReader
from dictionary_learning.data._source import Source
from dictionary_learning.data._text import as_source, file_source
from dictionary_learning.data._tokenizing import as_texts
from dictionary_learning.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class JoinedTextReader(WrappingReader):
    """Documents as text: conversations are rendered, and short texts are joined.

    Args:
        reader: The documents.
        tokenizer: Has the chat template.
        min_chars: The minimum length of a text, the last excepted; 0 joins nothing.
        separator: The text between two joined ones.
    """

    tokenizer: Any
    min_chars: int
    separator: str

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        joined, end = "", mark  # `end` is where the text that follows `joined` begins
        for document, following in self.reader.read(mark, epoch):
            if isinstance(document, TokenRow):
                document = BadDocument("is token ids; text is needed. Name the column that holds text")
            if isinstance(document, BadDocument):
                if joined:
                    yield joined, end
                joined, end = "", following
                yield document, following
                continue
            text = as_texts([document], self.tokenizer)[0]
            joined, end = f"{joined}{self.separator}{text}" if joined else text, following
            if len(joined) >= self.min_chars:
                yield joined, end
                joined = ""
        if joined:
            yield joined, end


def hf_dataset_to_generator(dataset_name: str, split: str = "train", streaming: bool = True) -> Source:
    """Returns the texts of a data set on the hub."""
    return as_source(dataset_name, split=split, streaming=streaming)


def zst_to_generator(data_path: str | os.PathLike[str]) -> Source:
    """Returns the texts of a compressed JSON Lines file."""
    return file_source(data_path)


def hf_mixed_dataset_to_generator(
    tokenizer: Any,
    pretrain_dataset: str = "HuggingFaceFW/fineweb",
    chat_dataset: str = "lmsys/lmsys-chat-1m",
    min_chars: int = 1,
    pretrain_frac: float = 0.9,
    split: str = "train",
    streaming: bool = True,
    pretrain_key: str = "text",
    chat_key: str = "conversation",
    sequence_pack_pretrain: bool = True,
    sequence_pack_chat: bool = False,
    system_prompt_to_remove: str | None = None,
    system_prompt_removal_freq: float = 0.9,
) -> Source:
    """Returns texts of two data sets: plain text, and conversations that the chat template renders.

    The texts do not contain BOS: a `TokenStream` inserts it before each.

    Args:
        tokenizer: Has the chat template.
        pretrain_dataset: The plain text, in the column `pretrain_key`.
        chat_dataset: The conversations, in the column `chat_key`.
        min_chars: Joins texts, with EOS between them, until they have this many characters.
        pretrain_frac: The fraction of plain texts among the documents, between 0 and 1.
        split: The split of both data sets.
        streaming: Whether both are streamed.
        pretrain_key: See `pretrain_dataset`.
        chat_key: See `chat_dataset`.
        sequence_pack_pretrain: Whether plain texts are joined.
        sequence_pack_chat: Whether conversations are joined.
        system_prompt_to_remove: Text that is removed from conversations.
        system_prompt_removal_freq: The fraction of conversations that it is removed from.

    Raises:
        ConfigError: A fraction is not between 0 and 1.
    """
    _check_fraction("pretrain_frac", pretrain_frac)
    chat = Chat(system_prompt=system_prompt_to_remove, removal_frequency=system_prompt_removal_freq)
    plain = as_source(pretrain_dataset, text_column=pretrain_key, split=split, streaming=streaming)
    talks = as_source(chat_dataset, text_column=chat_key, split=split, streaming=streaming, chat=chat)
    first = _join(plain, tokenizer, min_chars if sequence_pack_pretrain else 0)
    return mix(
        [first, _join(talks, tokenizer, min_chars if sequence_pack_chat else 0)], [pretrain_frac, 1 - pretrain_frac]
    )


def hf_sequence_packing_dataset_to_generator(
    tokenizer: Any,
    pretrain_dataset: str = "HuggingFaceFW/fineweb",
    min_chars: int = 1,
    split: str = "train",
    streaming: bool = True,
    pretrain_key: str = "text",
    sequence_pack_pretrain: bool = True,
) -> Source:
    """Returns the texts of a data set, joined with EOS until they have `min_chars` characters."""
    plain = as_source(pretrain_dataset, text_column=pretrain_key, split=split, streaming=streaming)
    return _join(plain, tokenizer, min_chars if sequence_pack_pretrain else 0)


def simple_hf_mixed_dataset_to_generator(
    main_name: str,
    aux_name: str,
    main_frac: float = 0.9,
    split: str = "train",
    streaming: bool = True,
    main_key: str = "text",
    aux_key: str = "text",
) -> Source:
    """Returns the texts of two data sets, with the fraction `main_frac` of the first."""
    _check_fraction("main_frac", main_frac)
    main = as_source(main_name, text_column=main_key, split=split, streaming=streaming)
    return mix(
        [main, as_source(aux_name, text_column=aux_key, split=split, streaming=streaming)], [main_frac, 1 - main_frac]
    )


def randomly_remove_system_prompt(text: str, freq: float, system_prompt: str | None = None) -> str:
    """Removes the system prompt with the probability `freq`, drawn by Python's global generator."""
    if not system_prompt:
        return text
    return remove_system_prompt(text, system_prompt, freq, random.Random(random.random()))


def _check_fraction(name: str, fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ConfigError(f"Got {name}={fraction}; a mixture of two needs a fraction between 0 and 1.")


def _join(source: Source, tokenizer: Any, min_chars: int) -> Source:
    reader = JoinedTextReader(source.reader, tokenizer, min_chars, tokenizer.eos_token or "\n\n")
    return Source(reader, source.name)
