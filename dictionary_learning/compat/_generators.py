"""Text and chunks of tokens, by the names of older scripts; texts are sources, which resume."""

import dataclasses
import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping
from typing import Any

from filelock import FileLock

from dictionary_learning._disk import write_atomically
from dictionary_learning.data import Chat, Source, TokenRow, as_source, mix
from dictionary_learning.data._document import BadDocument, Conversation, ReadOptions
from dictionary_learning.data._hub import cache_folder, dataset_reader, open_rows, write_rows
from dictionary_learning.data._packing import PackedContexts
from dictionary_learning.data._reading import Mark, WrappingReader
from dictionary_learning.data._source import EpochReader
from dictionary_learning.data._text import file_source
from dictionary_learning.data._tokenizing import SpecialTokens, fingerprint
from dictionary_learning.errors import ConfigError

_ROWS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class JoinedTextReader(WrappingReader):
    """Documents as text: conversations rendered, and texts joined until they have `min_chars`."""

    tokenizer: Any
    min_chars: int

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        separator = self.tokenizer.eos_token or "\n\n"
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
            text = document.render(self.tokenizer) if isinstance(document, Conversation) else document
            joined, end = f"{joined}{separator}{text}" if joined else text, following
            if len(joined) >= self.min_chars:
                yield joined, end
                joined = ""
        if joined:  # the last text may be shorter
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
        sequence_pack_pretrain: Whether plain texts are joined.
        sequence_pack_chat: Whether conversations are joined.
        system_prompt_to_remove: Text that is removed from conversations.
        system_prompt_removal_freq: The fraction of conversations that it is removed from.

    Raises:
        ConfigError: A fraction is not between 0 and 1.
    """
    _check_fraction("pretrain_frac", pretrain_frac)
    chat = Chat(system_prompt=system_prompt_to_remove, removal_frequency=system_prompt_removal_freq)
    plain = hf_sequence_packing_dataset_to_generator(
        tokenizer, pretrain_dataset, min_chars, split, streaming, pretrain_key, sequence_pack_pretrain
    )
    talks = as_source(chat_dataset, text_column=chat_key, split=split, streaming=streaming, chat=chat)
    joined_talks = _join(talks, tokenizer, min_chars, sequence_pack_chat)
    return mix([plain, joined_talks], [pretrain_frac, 1 - pretrain_frac])


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
    return _join(plain, tokenizer, min_chars, sequence_pack_pretrain)


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
    aux = as_source(aux_name, text_column=aux_key, split=split, streaming=streaming)
    return mix([main, aux], [main_frac, 1 - main_frac])


def _join(source: Source, tokenizer: Any, min_chars: int, joins: bool) -> Source:
    return Source(JoinedTextReader(source.reader, tokenizer, min_chars if joins else 0), source.name)


def _check_fraction(name: str, fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ConfigError(f"Got {name}={fraction}; a mixture of two needs a fraction between 0 and 1.")


def randomly_remove_system_prompt(text: str, freq: float, system_prompt: str | None = None) -> str:
    """Removes the system prompt with the probability `freq`, drawn by Python's global generator."""
    return text.replace(system_prompt, "") if system_prompt and random.random() < freq else text


def chunk_and_tokenize(
    data: Any,
    tokenizer: Any,
    *,
    format: str = "torch",
    num_proc: int | None = None,
    text_key: str = "text",
    max_seq_len: int = 2048,
    return_final_batch: bool = False,
    load_from_cache_file: bool = True,
) -> Any:
    """Returns a data set of chunks: documents, each after an EOS, joined and cut.

    Args:
        data: A `datasets.Dataset` of text.
        format: The format of the returned data set.
        num_proc: Unused; the tokenizer uses all cores.
        text_key: The column that holds the text.
        max_seq_len: Tokens in a chunk; fewer if the tokenizer's `model_max_length` is smaller.
        return_final_batch: Returns the rest of the text as a last, shorter chunk.
        load_from_cache_file: Loads chunks that were made of the same data before.
    """
    length = min(max_seq_len, tokenizer.model_max_length)
    made_by = [getattr(data, "_fingerprint", None), fingerprint(tokenizer), text_key, length, return_final_batch]
    name = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:32]
    path = cache_folder() / "chunk_and_tokenize" / f"{name}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # of several processes that need them, one makes them
        if not (path.is_file() and load_from_cache_file and made_by[0]):
            source = Source(*dataset_reader(data, ReadOptions(text_key), "the data set"))
            eos = tokenizer.eos_token_id
            special = SpecialTokens(bos=eos, at_document=eos is not None, at_context=False, separator=None)
            contexts = PackedContexts(EpochReader(source, 1, lambda: None), tokenizer, special, length)
            rows = _chunks(contexts, length, return_final_batch)
            write_atomically(path, lambda unfinished: write_rows(rows, unfinished, {"input_ids": "int32"}))
        return open_rows(path).with_format(format)


def _chunks(contexts: PackedContexts, length: int, final: bool) -> Iterator[Mapping[str, list[int]]]:
    while rows := contexts.take(_ROWS_AT_ONCE):
        yield from ({"input_ids": row.ids} for row in rows if final or len(row.ids) == length)
