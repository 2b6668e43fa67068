"""Feature absorption of the first letter of words, with a model's own vocabulary."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._types import ModelLike
from dictionary_learning.config import BaseConfig, setting
from dictionary_learning.errors import DataError
from dictionary_learning.evaluation._bootstrap import document_weights, error_bar
from dictionary_learning.evaluation._candidates import Candidate, PlacedCandidate, place, warn_of_others
from dictionary_learning.evaluation.downstream._absorbed import absorbed
from dictionary_learning.evaluation.downstream._baselines import random_like
from dictionary_learning.evaluation.downstream._directions import check_decoder, directions_of
from dictionary_learning.evaluation.downstream._letters import Letter, letters_told, main_latents
from dictionary_learning.evaluation.downstream._ranking import RANKINGS
from dictionary_learning.evaluation.downstream._records import AbsorptionEntry, AbsorptionReport, LetterReport, Role
from dictionary_learning.evaluation.downstream._rows import at_last_tokens, dense_latents
from dictionary_learning.evaluation.downstream._words import letter_prefix, words_of
from dictionary_learning.models import TracedModel, load_model

_TEST_SHARE = 0.2
_SMALL = 1_000_000_000
"""Parameters of a model below which few letters are told by a probe, as SAEBench says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbsorptionConfig(BaseConfig):
    """Which words are read, and which latents count as the letter's."""

    n_words: int = setting(4_000, at_least=20)
    """Words of the vocabulary, at random; a fifth of them are for the test."""
    n_examples: int = setting(3, at_least=0)
    """Lines such as " cat has the first letter: C" before each word."""
    least_f1: float = setting(0.6, at_least=0, at_most=1)
    """F1 that the probe of the activations needs on test words, for a letter to count."""
    least_words: int = setting(5, at_least=1)
    """Test words that a letter needs."""
    most_main: int = setting(10, at_least=1)
    """Main latents of a letter, at most."""
    least_gain: float = setting(0.03, at_least=0)
    """What one more main latent has to add to F1."""
    ranking: str = "l1"
    """How main latents are found: "l1", "mean_difference" or "f_statistic"."""
    strength: float = setting(1.0, above=0)
    """C of the logistic regressions."""
    random: bool = True
    """Whether a random dictionary of the same shape and L0 stands beside each."""
    batch_size: int = setting(64, at_least=1)
    """Words in a forward pass."""
    n_resamples: int = setting(1_000, at_least=0)
    """Resamples of the words for the error bars; 0 for none."""
    seed: int = setting(0, at_least=-(2**62), at_most=2**62)
    """Of the choice of words, of resamples and of random dictionaries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        RANKINGS[self.ranking]


@checked()
@torch.no_grad()
def feature_absorption(
    model: ModelLike,
    candidates: Candidate | Iterable[Candidate],
    words: Sequence[str] | None = None,
    config: AbsorptionConfig | None = None,
) -> AbsorptionReport:
    """Returns how often latents of a first letter are silent on words that begin with it.

    For each letter, a logistic probe tells its words by their activations, and the main latents are
    those of a k-sparse probe: k grows while F1 on test words does. On test words that the first
    probe tells right, `rate` is the share that one other latent has absorbed, and `fraction` the
    mean share that up to three others carry; both from 0 to 1, lower is better.

    Args:
        model: the language model, or its name.
        candidates: autoencoders with their names and sites.
        words: words of one token each; by default those of the vocabulary.
        config: how many words, and which letters count.

    Raises:
        ConfigError: a dictionary does not reconstruct what it reads, by one decoder.
        DataError: there are too few words, or a word is no single token.
        SiteError: a site is not in the model.
    """
    config = config or AbsorptionConfig()
    traced = load_model(model)
    placed = place(traced, candidates)
    for one in placed:
        check_decoder(one)
    warn_of_others(traced, [(e.name, e.dictionary, e.reads, e.writes) for e in placed])
    ids, names, letters = _prompts(traced, words, config)
    is_test = _is_test(letters)
    inputs = _inputs(traced, placed, ids, config.batch_size)
    entries: list[AbsorptionEntry] = []
    n_letters: list[int] = []
    for reads in dict.fromkeys(one.reads for one in placed):
        x = inputs[reads]
        told = letters_told(x.double().numpy(), letters, is_test, config.strength, config.least_f1, config.least_words)
        n_letters.append(len(told))
        for number, one in enumerate(placed):
            if one.reads != reads:
                continue
            if config.random:
                random = random_like(one, x, config.seed + number, placed)
                entries.append(_entry(random, "random", x, told, is_test, config))
            entries.append(_entry(one, "dictionary", x, told, is_test, config))
    return AbsorptionReport(
        n_words=len(names), n_letters=max(n_letters), entries=entries, warning=_warning(traced, min(n_letters), config),
        settings=config.to_dict(),
    )  # fmt: skip


def _prompts(
    model: TracedModel, words: Sequence[str] | None, config: AbsorptionConfig
) -> tuple[Tensor, list[str], np.ndarray]:
    """Returns the ids of the prompts (n, ctx), which end with the words; words and letters."""
    known = words_of(model, words)
    random = np.random.default_rng(abs(config.seed))
    order = random.permutation(len(known.words))
    examples = [known.words[n] for n in order[: config.n_examples]]
    chosen = order[config.n_examples : config.n_examples + config.n_words]
    if len(chosen) < 2 or len(set(known.letters[chosen])) < 2:
        raise DataError(
            f"{model.name} has {len(chosen)} words of one token after {len(examples)} examples; words of at least two "
            "letters are needed. Give words=, or fewer n_examples."
        )
    prefix = letter_prefix(model, examples)
    ids = torch.cat([prefix.expand(len(chosen), -1), torch.from_numpy(known.ids[chosen]).unsqueeze(1)], dim=1)
    return ids, [known.words[n] for n in chosen], known.letters[chosen]


def _is_test(letters: np.ndarray) -> np.ndarray:
    """Returns the first fifth of the words of each letter: words are in random order."""
    found = np.zeros(len(letters), dtype=bool)
    for letter in np.unique(letters):
        places = np.flatnonzero(letters == letter)
        found[places[: round(_TEST_SHARE * len(places))]] = True
    return found


def _inputs(model: TracedModel, placed: Sequence[PlacedCandidate], ids: Tensor, batch_size: int) -> dict[tuple, Tensor]:
    """Returns the activations of the last tokens, by the sites that dictionaries read."""
    sites = list(dict.fromkeys(site for one in placed for site in one.reads))
    whole = at_last_tokens(model, ids, sites, batch_size)
    return {one.reads: torch.cat([whole[site] for site in one.reads], dim=-1) for one in placed}


def _entry(
    one: PlacedCandidate, role: Role, x: Float[Tensor, "n dim"], told: Sequence[Letter],
    is_test: np.ndarray, config: AbsorptionConfig,
) -> AbsorptionEntry:  # fmt: skip
    """Returns the figures of a dictionary."""
    latents, decoder = dense_latents(one, x), directions_of(one.dictionary)
    train, test = (latents[torch.from_numpy(rows)].double().numpy() for rows in (~is_test, is_test))
    reports: list[LetterReport] = []
    resampled: dict[str, list[Tensor]] = {"rate": [], "fraction": []}
    n = min((int(letter.told.sum()) for letter in told), default=0)
    for number, letter in enumerate(told):
        options = (config.most_main, config.least_gain, config.strength)
        main, f1 = main_latents(train, test, letter.truth, is_test, RANKINGS[config.ranking], *options)
        held = torch.from_numpy(letter.told)
        found = absorbed(latents[held], x[held], decoder, torch.from_numpy(letter.probe.weight).float(), main)
        of_words = {"rate": found.is_full.double(), "fraction": found.fraction.double()}
        reports.append(
            LetterReport(
                letter=letter.name, n_words=int(held.sum()), probe_f1=letter.f1, latents=main, k_sparse_f1=f1,
                **{key: float(value.mean()) for key, value in of_words.items()},
            )
        )  # fmt: skip
        weights = document_weights(int(held.sum()), config.n_resamples, config.seed + number)
        for key, value in of_words.items():
            # one word alone is the same in all resamples
            same = value.mean().expand(max(config.n_resamples, 1))
            resampled[key].append(same if weights is None else weights @ value / weights.sum(1))
    metrics = {key: float(np.mean([one[key] for one in reports])) if reports else float("nan") for key in resampled}
    metrics["n_main_latents"] = float(np.mean([len(one.latents) for one in reports])) if reports else float("nan")
    errors = {
        key: bar
        for key, rows in resampled.items()
        if rows and len(rows[0]) > 1 and (bar := error_bar(torch.stack(rows).mean(0), max(n, 2), key)) is not None
    }
    return AbsorptionEntry(name=one.name, role=role, metrics=metrics, errors=errors or None, letters=reports)


def _warning(model: TracedModel, n_letters: int, config: AbsorptionConfig) -> str | None:
    n = sum(parameter.numel() for parameter in model.module.parameters())
    told = f"{n_letters} letters are told by the activations with F1 of {config.least_f1:g} or more"
    if not n_letters:
        return f"{told}: no figure. The model does not know first letters at this site, or there are too few words."
    if n < _SMALL:
        return (
            f"{told}. Models below a billion parameters spell badly; in the literature this measure is of larger ones."
        )
    return None
