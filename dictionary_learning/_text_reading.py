"""How a text is read, and how contexts are made of it, in settings that words can say.

The shell, run files and the files of a run have these settings. They stand for `as_source`, `mix`
and `TokenStream`, and mean the same.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dictionary_learning._coercion import coerce
from dictionary_learning._mix_words import Word, as_word, split_words
from dictionary_learning._said import check_contexts_said, check_reading_said, saying
from dictionary_learning._secrets import HIDDEN
from dictionary_learning.config import BaseConfig, field_types, setting
from dictionary_learning.errors import ConfigError

if TYPE_CHECKING:
    from dictionary_learning.data import ContextSource, Source

_OF_THE_MIXTURE = ("mix", "weights", "mix_seed", "exhausted")
_OF_THE_WHOLE = ("shuffle_seed", "shuffle_buffer", "max_examples")
"""Settings of a mixture as a whole, which its parts do not take over."""
_PART = "give the name of data, as books.jsonl, or a mapping, as {data: books.jsonl, text_column: body}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextReading(BaseConfig):
    """How the text of a run is read."""

    said: ClassVar[frozenset[str]] = frozenset()
    """The settings that are no defaults but were said (see `saying`)."""
    text_column: str = "text"
    """The column or key of the text; data without it may have input_ids, tokens or messages."""
    split: str = "train"
    """The split of a data set on the hub."""
    streaming: bool = True
    """Whether a data set on the hub is read while it is downloaded."""
    data_args: tuple[str, ...] = ()
    """Further arguments of datasets.load_dataset, as name=value."""
    mix: tuple[str, ...] = ()
    """Further data, from which documents are drawn too. Settings of one may follow its name, as in
    "chats.jsonl text_column=body"; those of the command are the defaults. A value that holds
    name=value stands in quotes."""
    weights: tuple[float, ...] = ()
    """With --mix, how often each is drawn from, relative to the others, the main data first; by
    default equally often."""
    mix_seed: int = 0
    """Seed of the draws of --mix."""
    exhausted: Literal["stop", "restart", "continue"] = "stop"
    """With --mix, what happens when one ends: the whole ends, it starts anew until each was read
    once, or the others go on."""
    max_examples: int | None = setting(None, at_least=1)
    """The most documents to read; by default all."""
    shuffle_seed: int | None = None
    """Seed of a random order of the documents; by default their own order."""
    shuffle_buffer: int = setting(10_000, at_least=1)
    """Documents shuffled with each other, where they cannot be fetched by number."""
    token_dtype: Literal["uint16", "uint32", "int32", "int64", "uint8"] = "uint16"
    """The type of the token ids in a .bin file."""
    separator_id: int | None = None
    """The token id that ends each document of a .bin or .npy file."""
    row_len: int = setting(2048, at_least=1)
    """Tokens read at once from a .bin or .npy file that is one long text."""
    on_bad_document: Literal["error", "skip"] = "error"
    """What happens at a record without text: an error names it, or it is skipped and counted."""
    chat_template: str | None = None
    """A Jinja template that renders conversations, instead of the tokenizer's own."""
    system_prompt: str | None = None
    """Text that is taken out of rendered conversations."""
    removal_frequency: float = setting(1.0, at_least=0, at_most=1)
    """The share of conversations from which --system-prompt is taken out."""
    chat_seed: int = 0
    """Seed of which these are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        list(self.parts())
        n = 1 + len(self.mix)
        if self.weights and (n == 1 or len(self.weights) != n):
            raise ConfigError(
                f"Got {len(self.weights)} weights for {n} data. Give one for each: the main data, then those of mix."
            )

    def parts(self) -> "Iterator[tuple[str, TextReading]]":
        """Yields each further data with its own settings.

        Raises:
            ConfigError: One of them cannot be used.
        """
        own = {name: value for name, value in self.settings().items() if name not in (*_OF_THE_MIXTURE, *_OF_THE_WHOLE)}
        for words in self.mix:
            data, given = _split(words)
            yield data, saying(TextReading.from_dict({**own, **given}), given)

    def settings(self) -> dict[str, Any]:
        """Returns these settings, without those of a class that has more."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(TextReading)}

    def source(self, data: str) -> "Source":
        """Returns the documents.

        Raises:
            ConfigError: A setting was said that can have no effect on them.
        """
        check_reading_said(self, data, self.said)
        parts = [self.read(data), *(saying(part, ()).source(name) for name, part in self.parts())]
        return self._limited(self._mixed(parts))

    def divided(self, data: str, held_out_every: int) -> "tuple[Source, Source]":
        """Returns the documents to train on, and every n-th of all, which are held out.

        Raises:
            ConfigError: A setting was said that can have no effect on them.
        """
        check_reading_said(self, data, self.said)
        own = self.read(data).hold_out(held_out_every)
        parts = [own, *(saying(part, ()).divided(name, held_out_every) for name, part in self.parts())]
        rest, held = (self._mixed([part[side] for part in parts]) for side in (0, 1))
        return self._limited(rest), held

    def read(self, data: str) -> "Source":
        """Returns all documents of one data, in their own order."""
        from dictionary_learning.data import Chat, as_source

        chat = Chat(
            template=self.chat_template,
            system_prompt=self.system_prompt,
            removal_frequency=self.removal_frequency,
            seed=self.chat_seed,
        )
        return as_source(
            data,
            chat=None if chat == Chat() else chat,
            data_args=named_values(self.data_args, "--data-args"),
            dtype=self.token_dtype,
            text_column=self.text_column,
            split=self.split,
            streaming=self.streaming,
            separator_id=self.separator_id,
            row_len=self.row_len,
            on_bad_document=self.on_bad_document,
        )

    def _mixed(self, parts: "list[Source]") -> "Source":
        from dictionary_learning.data import mix

        if len(parts) == 1:
            return parts[0]
        return mix(parts, weights=self.weights or None, seed=self.mix_seed, exhausted=self.exhausted)

    def _limited(self, source: "Source") -> "Source":
        if self.shuffle_seed is not None:
            source = source.shuffled(self.shuffle_seed, self.shuffle_buffer)
        return source if self.max_examples is None else source.first(self.max_examples)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextReading(BaseConfig):
    """How contexts of tokens are made of documents."""

    said: ClassVar[frozenset[str]] = frozenset()
    """The settings that are no defaults but were said (see `saying`)."""
    pack: bool = True
    """Whether documents are packed into full contexts; otherwise each is cut and padded."""
    add_special_tokens: bool = True
    """Whether BOS and separators are inserted."""
    bos: Literal["document", "context", "both", "none"] | None = None
    """What begins with BOS; by default both, where the tokenizer has a BOS token."""
    separator: int | str | None = "auto"
    """What ends each packed document: eos, bos, a token or its id, or none; auto is EOS without a
    BOS."""
    padding_side: Literal["left", "right"] | None = None
    """The side of the padding; by default the tokenizer's for padded documents, else the right."""
    long_documents: Literal["cut", "split"] = "cut"
    """What happens to padded documents longer than a context: cut, or split into several."""
    rows: Literal["auto", "contexts", "documents"] = "auto"
    """What rows of token ids are; auto: contexts, if all of them are as long as one."""
    epochs: int | None = setting(1, at_least=1)
    """Passes over the text, after which the data has ended; none for no end."""
    vocab_size: int | None = setting(None, at_least=1)
    """The number of token ids that are known, instead of the tokenizer's and the model's."""

    def tokens(self) -> dict[str, Any]:
        """Returns these settings, as arguments of a `TokenStream`."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(ContextReading)}
        # the word of the shell: no token is called so
        return {**found, "separator": None if self.separator == "none" else self.separator}

    def contexts(self, text: "Source", model: Any, ctx_len: int, end_of_data: Any = "stop") -> "ContextSource":
        """Returns the contexts of a text, for a `TracedModel`.

        Raises:
            ConfigError: A setting was said that can have no effect on them.
        """
        from dictionary_learning.data import as_context_source

        check_contexts_said(self, text, self.said)
        options = {"ctx_len": ctx_len, "end_of_data": end_of_data, **self.tokens()}
        if self.pack:  # those of a run may say more than one evaluation of it needs
            options["long_documents"] = "cut"
        return as_context_source(text, model.tokenizer, model=model, **options)


def words_of_part(part: Any) -> str:
    """Returns a part of a mixture, which a run file may say as a mapping, in words.

    Raises:
        ConfigError: It names no data, or has a setting that is none or cannot be used.
    """
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise ConfigError(f"Got {part!r} in mix; {_PART}.")
    given = {str(key).replace("-", "_"): value for key, value in part.items()}
    data = given.pop("data", None)
    if not isinstance(data, str) or not data.strip():
        raise ConfigError(f"Got {dict(part)} in mix; name its data, as {{data: books.jsonl, text_column: body}}.")
    words = " ".join([as_word(data), *(f"{name}={_word(name, value)}" for name, value in given.items())])
    _split(words)
    return words


def mapping_of_part(words: str) -> str | dict[str, Any]:
    """Returns a part of a mixture as a run file says it: its data, with settings as a mapping."""
    data, given = _split(words)
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return {"data": data, **plain} if plain else words


def _word(name: str, value: Any) -> str:
    if name == "data_args":
        return as_word(json.dumps(words_of_pairs(value)))
    if isinstance(value, (list, tuple, Mapping)):
        raise ConfigError(f"Got {name}: {value!r} for a part of mix; it takes one value.")
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else as_word(str(value))


def words_of_pairs(pairs: Any) -> Any:
    """Returns pairs of a run file, which may be a mapping, as name=value."""
    if isinstance(pairs, Mapping):
        return [f"{key}={one if isinstance(one, str) else json.dumps(one)}" for key, one in pairs.items()]
    return pairs


def _split(words: str) -> tuple[str, dict[str, Any]]:
    """Returns the name of data, which may have spaces, and the settings that follow it."""
    fields = [field.name for field in dataclasses.fields(TextReading) if field.name not in _OF_THE_MIXTURE]
    data, settings = split_words(words)
    odd = next((name for name, _ in settings if name not in fields), None)
    if data and odd in {field.name for field in dataclasses.fields(ContextReading)}:
        raise ConfigError(
            f"Got {words!r} in mix, with {odd}: contexts are made of the whole mixture, so {odd} is of all its parts. "
            f"Give {odd} beside mix. To mix contexts that are made differently, mix caches or buffers of them in "
            "Python, by ActivationMixture."
        )
    if not data or odd:
        what = f"the setting {odd}" if odd else "no data"
        raise ConfigError(
            f"Got {words!r} in mix, with {what}. Settings of a part are {', '.join(fields)}; a value that holds "
            'name=value stands in quotes, as system_prompt="x=1 y=2".'
        )
    given: dict[str, Any] = {}
    for name, word in settings:
        if name in given:
            raise ConfigError(f"Got {words!r} in mix, with {name} twice, and only the last would count. Give it once.")
        try:
            given[name] = coerce(_value(name, word), field_types(TextReading)[name])
        except TypeError as error:
            raise ConfigError(f"Got {words!r} in mix; {name} must be {error}.") from None
    return data, given


def _value(name: str, word: Word) -> Any:
    """Returns what a word means for a setting; what it cannot mean, the config refuses."""
    text = word.text
    if name == "data_args":
        return tuple(json.loads(text)) if word.is_quoted and text.startswith("[") else tuple(text.split(","))
    if name in ("chat_template", "system_prompt"):
        return None if text.lower() == "none" and not word.is_quoted else text
    if not isinstance(getattr(TextReading(), name, None), str):
        try:
            return None if text.lower() == "none" else json.loads(text.lower())
        except json.JSONDecodeError:
            return text
    return text


def named_values(pairs: tuple[str, ...], option: str) -> dict[str, Any]:
    """Returns arguments that are given as name=value, by their names.

    Args:
        option: the option that gives them, for errors.

    Raises:
        ConfigError: One has no name.
    """
    found: dict[str, Any] = {}
    for pair in (pair for pair in pairs if not pair.endswith(HIDDEN)):  # a token of the run that was not stored
        name, separator, value = pair.partition("=")
        if not separator or not name.isidentifier():
            raise ConfigError(f"Got {option} {pair!r}; give name=value, as {option} revision=main.")
        try:
            found[name] = json.loads(value)  # numbers and booleans; anything else is a string
        except json.JSONDecodeError:
            found[name] = value
    return found
