"""Sources by the names that they are known by elsewhere: each gives text, one document after another, and resumes as any source does."""

import os
import random
from typing import Any

from dictionary_learning.data.chat import Chat, without_system_prompt
from dictionary_learning.data.joining import Joined, Written
from dictionary_learning.data.mixture import mix
from dictionary_learning.data.source import Source
from dictionary_learning.data.text import as_source, file_source
from dictionary_learning.errors import ConfigError


def hf_dataset_to_generator(dataset_name: str, split: str = "train", streaming: bool = True) -> Source:
    """Returns the texts of a data set on the hub."""
    return as_source(dataset_name, split=split, streaming=streaming)


def zst_to_generator(data_path: str | os.PathLike) -> Source:
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
    """Returns texts of two data sets: one of plain text, one of conversations, which the tokenizer's chat template writes.

    BOS is not written into the texts: a `TokenStream` puts it before each, and never a second one.

    Args:
        tokenizer: has the chat template.
        pretrain_dataset: the plain text.
        chat_dataset: the conversations.
        min_chars: joins texts, with EOS between them, until they have so many characters.
        pretrain_frac: the share of plain text among the documents, between 0 and 1.
        split: of both.
        streaming: whether both are streamed.
        pretrain_key: the column of plain text.
        chat_key: the column of conversations.
        sequence_pack_pretrain: whether plain texts are joined.
        sequence_pack_chat: whether conversations are joined.
        system_prompt_to_remove: text that is taken out of conversations, as one that the template puts in.
        system_prompt_removal_freq: out of which share of them.

    Raises:
        ConfigError: a share is not between 0 and 1.
    """
    if not 0 < pretrain_frac < 1:
        raise ConfigError(f"Got pretrain_frac={pretrain_frac}; a mixture of two needs a share between 0 and 1.")
    chat = Chat(system_prompt=system_prompt_to_remove, removal_frequency=system_prompt_removal_freq)
    plain = as_source(pretrain_dataset, text_column=pretrain_key, split=split, streaming=streaming)
    talks = as_source(chat_dataset, text_column=chat_key, split=split, streaming=streaming, chat=chat)
    parts = [
        _written(plain, tokenizer, min_chars if sequence_pack_pretrain else None),
        _written(talks, tokenizer, min_chars if sequence_pack_chat else None),
    ]
    return mix(parts, [pretrain_frac, 1 - pretrain_frac])


def hf_sequence_packing_dataset_to_generator(
    tokenizer: Any,
    pretrain_dataset: str = "HuggingFaceFW/fineweb",
    min_chars: int = 1,
    split: str = "train",
    streaming: bool = True,
    pretrain_key: str = "text",
    sequence_pack_pretrain: bool = True,
) -> Source:
    """Returns the texts of a data set, joined with EOS between them until they have `min_chars` characters."""
    plain = as_source(pretrain_dataset, text_column=pretrain_key, split=split, streaming=streaming)
    return _written(plain, tokenizer, min_chars if sequence_pack_pretrain else None)


def simple_hf_mixed_dataset_to_generator(
    main_name: str,
    aux_name: str,
    main_frac: float = 0.9,
    split: str = "train",
    streaming: bool = True,
    main_key: str = "text",
    aux_key: str = "text",
) -> Source:
    """Returns the texts of two data sets, with the share `main_frac` of the first."""
    if not 0 < main_frac < 1:
        raise ConfigError(f"Got main_frac={main_frac}; a mixture of two needs a share between 0 and 1.")
    parts = [
        as_source(name, text_column=key, split=split, streaming=streaming)
        for name, key in ((main_name, main_key), (aux_name, aux_key))
    ]
    return mix(parts, [main_frac, 1 - main_frac])


def randomly_remove_system_prompt(text: str, freq: float, system_prompt: str | None = None) -> str:
    """Returns the text, at the given frequency without the system prompt; the draw follows Python's own seed."""
    if not system_prompt:
        return text
    return without_system_prompt(text, system_prompt, freq, random.Random(random.random()))


def _written(source: Source, tokenizer: Any, min_chars: int | None) -> Source:
    reader = Written(source.reader, tokenizer)
    if min_chars is None:
        return Source(reader, source.name)
    return Source(Joined(reader, min_chars, tokenizer.eos_token or "\n\n"), source.name)
