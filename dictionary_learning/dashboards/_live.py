"""What the live page asks of a model: latents of a text, and a generation with latents changed."""

import threading
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from dictionary_learning._types import ModelLike, SubmodulesLike
from dictionary_learning.dashboards._connecting import check_dictionaries
from dictionary_learning.dashboards._fields import Fields
from dictionary_learning.dashboards._scripts import rounded
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError, DataError, UnknownNameError
from dictionary_learning.interpretation._token_text import texts_of
from dictionary_learning.interventions import generate, latent_edits, read_latents
from dictionary_learning.interventions._inputs import as_tokens
from dictionary_learning.interventions._places import sites_read
from dictionary_learning.latents import to_dense
from dictionary_learning.models import Edit, load_model, shown_name

MOST_CHARACTERS, MOST_TOKENS, MOST_LATENTS, MOST_CHANGES = 20_000, 512, 200, 32
_WAYS = ("clamp", "add", "scale")


class LiveModel:
    """A model and its dictionaries, asked by one caller at a time."""

    def __init__(self, model: ModelLike, dictionaries: Mapping[str, Dictionary], sites: Mapping[str, SubmodulesLike]):
        self._model = load_model(model)
        if not dictionaries:
            raise ConfigError("Got no dictionary. Give at least one, by its name.")
        check_dictionaries(dictionaries)
        if self._model.tokenizer is None:
            raise ConfigError(f"{self._model.name} has no tokenizer, and prompts are text. Load it with tokenizer=.")
        self._dictionaries = dict(dictionaries)
        self._sites = {
            name: sites_read(self._model, each, sites.get(name)) for name, each in self._dictionaries.items()
        }
        self._lock = threading.Lock()

    def about(self, fields: Fields) -> dict[str, Any]:
        """Returns the names of the model and of its dictionaries."""
        fields.end()
        found = [
            {"name": name, "site": ", ".join(map(str, self._sites[name])), "size": one.dict_size}
            for name, one in self._dictionaries.items()
        ]
        return {"model": shown_name(self._model.name), "dictionaries": found, "ways": list(_WAYS)}

    def read(self, fields: Fields) -> dict[str, Any]:
        """Returns the tokens of a text, and the values of its strongest latents on each."""
        name, text = fields.text("dictionary", 1000), fields.text("text", MOST_CHARACTERS)
        n = fields.integer("n", 1, MOST_LATENTS, 40)
        wanted = fields.integers("latents", MOST_CHANGES)
        fields.end()
        dictionary = self._dictionary(name)
        _check_latents(dictionary, wanted)
        with self._lock:
            given = self._ids(text, 0)
            reading = read_latents(self._model, dictionary, given, site=self._sites[name])
            values = to_dense(reading.latents).float().cpu()  # (n, dict_size)
        ids: list[int] = reading.input_ids[0].tolist()
        largest = values.abs().amax(0) if len(values) else values.new_zeros(dictionary.dict_size)
        best: list[int] = largest.topk(min(n, dictionary.dict_size)).indices.tolist()
        shown = [i for i in dict.fromkeys([*wanted, *best]) if i in wanted or largest[i] > 0]
        columns = torch.zeros(len(ids), len(shown))
        columns[reading.mask[0]] = values[:, shown]
        latents = [{"latent": i, "values": rounded(columns[:, at].tolist())} for at, i in enumerate(shown)]
        return {"tokens": texts_of(self._model.tokenizer, ids), "latents": latents}

    def generate(self, fields: Fields) -> dict[str, Any]:
        """Returns how the model goes on, as it is and with latents changed."""
        name, prompt = fields.text("dictionary", 1000), fields.text("text", MOST_CHARACTERS)
        n_tokens = fields.integer("n_tokens", 1, MOST_TOKENS, 40)
        temperature = fields.number("temperature", 0, 10, 0)
        seed = fields.integer("seed", 0, 2**31 - 1, 0)
        changes = fields.parts("changes", MOST_CHANGES)
        dictionary = self._dictionary(name)
        given: dict[str, Any] = {way: {} for way in _WAYS}
        for change in changes:
            latent, value = change.integer("latent", 0, dictionary.dict_size - 1), change.number("value", -1e6, 1e6)
            given[change.choice("way", _WAYS)][latent] = value
            change.end()
        fields.end()
        edits = latent_edits(self._model, dictionary, site=self._sites[name], **given) if changes else {}
        options: dict[str, Any] = {"max_new_tokens": n_tokens, "do_sample": temperature > 0}
        if temperature > 0:
            options["temperature"] = temperature
        with self._lock:
            given_ids = self._ids(prompt, n_tokens)
            clean = self._continued(given_ids, {}, seed, options)
            steered = self._continued(given_ids, edits, seed, options)
        return {"prompt": prompt, "clean": clean, "steered": steered}

    def _dictionary(self, name: str) -> Dictionary:
        if name not in self._dictionaries:
            raise UnknownNameError("dictionary", name, self._dictionaries)
        return self._dictionaries[name]

    def _ids(self, text: str, n_tokens: int) -> Int[Tensor, "batch ctx"]:
        """Returns the ids of a text, and checks that it fits into the model."""
        ids = as_tokens(self._model, text).input_ids
        length, longest = ids.shape[1] + n_tokens, self._model.longest_context
        if longest is not None and length > longest:
            raise DataError(f"Got {length} tokens; {self._model.name} takes {longest}. Give a shorter text.")
        return ids

    def _continued(
        self, given: Int[Tensor, "batch ctx"], edits: Mapping[Any, Edit], seed: int, options: Mapping[str, Any]
    ) -> list[str]:
        made = generate(self._model, given, edits, generator=torch.Generator().manual_seed(seed), **options)
        return texts_of(self._model.tokenizer, made.generated[0].tolist())


def _check_latents(dictionary: Dictionary, latents: list[int]) -> None:
    wrong = next((i for i in latents if not 0 <= i < dictionary.dict_size), None)
    if wrong is not None:
        raise ConfigError(f"Got latent {wrong}; the dictionary has latents 0 to {dictionary.dict_size - 1}.")
