"""Judges and embedders by a word, as the command line takes them."""

import os
from typing import Any

from dictionary_learning.errors import ConfigError, ModelError
from dictionary_learning.interpretation.explanations._baseline import Baseline, WordCounts
from dictionary_learning.interpretation.explanations._judges import Embedder, Judge
from dictionary_learning.interpretation.explanations._local import LocalEmbedder, LocalJudge
from dictionary_learning.interpretation.explanations._openai import KEY, OPENAI, OpenAIEmbedder, OpenAIJudge

_FORMS = "baseline, openai:MODEL@URL (without @URL, OpenAI's own), or local:PATH"


def judge_of(word: str, *, key_variable: str = KEY, n_parallel: int = 8) -> Judge:
    """Returns a judge: baseline, openai:MODEL@URL or local:PATH.

    Raises:
        ConfigError: The word is none of these.
        ModelError: A local model cannot be loaded.
    """
    kind, place = _read("judge", word)
    if kind == "baseline":
        return Baseline()
    if kind == "openai":
        model, url = _address(place)
        return OpenAIJudge(model, url, key_variable=key_variable, n_parallel=n_parallel)
    return LocalJudge(*_load(place, "AutoModelForCausalLM"), name=place)


def embedder_of(word: str, *, key_variable: str = KEY, n_parallel: int = 8) -> Embedder:
    """Returns an embedder: baseline, openai:MODEL@URL or local:PATH.

    Raises:
        ConfigError: The word is none of these.
        ModelError: A local model cannot be loaded.
    """
    kind, place = _read("embedder", word)
    if kind == "baseline":
        return WordCounts()
    if kind == "openai":
        model, url = _address(place)
        return OpenAIEmbedder(model, url, key_variable=key_variable, n_parallel=n_parallel)
    return LocalEmbedder(*_load(place, "AutoModel"), name=place)


def _read(what: str, word: str) -> tuple[str, str]:
    kind, colon, place = word.partition(":")
    if not (word == "baseline" or (kind in ("openai", "local") and colon and place)):
        raise ConfigError(f"Got {what} {word!r}; give {_FORMS}.")
    return kind, place


def _address(place: str) -> tuple[str, str]:
    model, at, url = place.rpartition("@")
    return (model, url) if at else (place, OPENAI)


def _load(place: str, name: str) -> tuple[Any, Any]:
    """Returns a model and its tokenizer."""
    import transformers

    from dictionary_learning._border import said

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        model = getattr(transformers, name).from_pretrained(place, local_files_only=os.path.isdir(place))
    except Exception as error:
        raise ModelError(
            f"The model '{place}' cannot be loaded: {said(error)} Give a folder of transformers, or a name on the "
            "Hugging Face hub."
        ) from error
    return model.eval(), tokenizer
