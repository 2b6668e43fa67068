"""Absorption that was planted by hand is found at its rate; the formulas, latent by latent."""

import math

import numpy as np
import pytest
import torch

from dictionary_learning import Candidate, Transcoder
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation.downstream import AbsorptionConfig, feature_absorption
from dictionary_learning.evaluation.downstream._absorbed import absorbed
from dictionary_learning.evaluation.downstream._absorption import _is_test, _prompts
from dictionary_learning.evaluation.downstream._letters import main_latents
from dictionary_learning.evaluation.downstream._ranking import RANKINGS
from dictionary_learning.evaluation.downstream._words import letter_prefix, words_of
from tests import tiny
from tests.evaluation.downstream.planted import LETTERS, SITE, absorbing_dictionary, letter_model, model

CONFIG = AbsorptionConfig(n_examples=0, least_words=1, strength=10.0, n_resamples=50)


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_absorption_is_found_at_its_rate(seed):
    traced, taken = letter_model()
    config = CONFIG.replace(seed=seed)
    report = feature_absorption(traced, Candidate("d", absorbing_dictionary(), SITE), config=config)
    _, words, letters = _prompts(traced, None, config)
    is_test = _is_test(letters)
    share = np.mean([word in taken for word, held in zip(words, is_test & (letters == "a"), strict=True) if held])
    assert 0 < share < 1
    assert report.n_letters == 4 and report.n_words == len(words)
    random, found = report.entries
    assert (random.role, found.role) == ("random", "dictionary")
    by_letter = {one.letter: one for one in found.letters}
    assert by_letter["a"].rate == by_letter["a"].fraction == pytest.approx(share)
    assert [by_letter[letter].rate for letter in "bcd"] == [by_letter[letter].fraction for letter in "bcd"] == [0, 0, 0]
    assert {letter: one.latents for letter, one in by_letter.items()} == {c: [n] for n, c in enumerate(LETTERS)}
    assert found.metrics["rate"] == pytest.approx(share / 4)
    assert found.errors["rate"].standard_error > 0
    assert "billion" in report.warning


def brute(f, x, d, p, main):
    """The definition, for one token."""
    p = p / p.norm()
    share = [float(f[i] * (d[i] @ p)) for i in range(len(f))]
    cosine = [float(d[i] @ p / d[i].norm()) for i in range(len(f))]
    total = float(x @ p)
    top = max(range(len(f)), key=lambda i: share[i])
    full = all(abs(f[i]) < 1e-8 for i in main) and cosine[top] >= 0.025 and total > 0 and share[top] >= 0.4 * total
    own = sum(share[i] for i in main)
    others = [share[i] for i in range(len(f)) if i not in main and cosine[i] >= 0.1 and share[i] > 0]
    together = sum(sorted(others)[-3:])
    if total <= 0 or own >= total or together < 0.4 * total:
        return full, 0.0
    if own <= 0:
        return full, 1.0
    carried = min(together, total - own)
    return full, carried / (carried + own)


def test_absorption_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    n, width, dim = 400, 12, 5
    f = torch.rand(n, width, generator=generator) * (torch.rand(n, width, generator=generator) < 0.3)
    d, p = torch.randn(width, dim, generator=generator), torch.randn(dim, generator=generator)
    x = f @ d + 0.1 * torch.randn(n, dim, generator=generator)
    main = [0, 3]
    found = absorbed(f, x, d, p, main)
    expected = [brute(f[t], x[t], d, p, main) for t in range(n)]
    assert found.is_full.tolist() == [full for full, _ in expected]
    assert found.fraction.tolist() == pytest.approx([fraction for _, fraction in expected], abs=1e-5)
    assert 0 < found.is_full.sum() < n and len(set(found.fraction.tolist())) > 10


def test_main_latents_grow_while_f1_does():
    y = np.arange(200) % 4 == 0
    is_test = np.arange(200) % 8 < 4
    halves = np.arange(200) % 16 < 8
    x = np.random.default_rng(0).random((200, 6)) * 0.01
    x[y & halves, 2], x[y & ~halves, 4] = 1, 1
    latents, f1 = main_latents(x[~is_test], x[is_test], y, is_test, RANKINGS["f_statistic"], 5, 0.03, 100.0)
    assert set(latents) == {2, 4} and f1 == 1
    (one,), lower = main_latents(x[~is_test], x[is_test], y, is_test, RANKINGS["f_statistic"], 1, 0.03, 100.0)
    assert one in (2, 4) and lower < 1


def test_latents_that_are_smaller_on_the_letter_are_not_its_own():
    y = np.arange(80) % 2 == 0
    x = np.column_stack([(~y).astype(float), y * 0.5 + np.random.default_rng(0).random(80) * 0.4])
    found, _ = main_latents(x[:60], x[60:], y, np.arange(80) >= 60, RANKINGS["f_statistic"], 1, 0.03, 1.0)
    assert found == [1]


def test_no_letter_no_figure():
    traced = model()  # of words w0, w1, ... : one letter, and no letters alone
    with pytest.raises(DataError, match="words of one token"):
        feature_absorption(traced, Candidate("d", absorbing_dictionary(), SITE))
    spelling, _ = letter_model()
    random = feature_absorption(
        spelling, Candidate("d", absorbing_dictionary(), SITE), config=CONFIG.replace(least_words=90)
    )
    assert random.n_letters == 0 and "no figure" in random.warning
    assert math.isnan(random.entries[0].metrics["rate"]) and random.entries[0].letters == []


def test_a_dictionary_may_have_the_name_of_a_random_one():
    traced, made = letter_model()[0], absorbing_dictionary()
    candidates = [Candidate("d", made, SITE), Candidate("random like d", made, SITE)]
    report = feature_absorption(traced, candidates, config=CONFIG.replace(n_resamples=0))
    assert len({one.name for one in report.entries}) == len(report.entries) == 4


def test_words_are_tokens_of_letters_alone():
    traced, _ = letter_model()
    words = words_of(traced)
    assert len(words.words) == 92 and set(words.letters) == set(LETTERS)
    assert words_of(traced, ["bc", "aa"]).words == ("bc", "aa")
    with pytest.raises(DataError, match="'zebra' is no single token"):
        words_of(traced, ["aa", "zebra"])
    assert letter_prefix(traced, []).tolist() == [0]
    assert letter_prefix(traced, ["bc"])[:2].tolist() == [0, int(words_of(traced, ["bc"]).ids[0])]


def test_dictionaries_without_directions_are_refused():
    traced, _ = letter_model()
    candidate = Candidate("t", Transcoder(tiny.DIM, 8, {"name": "relu"}), "model.layers.1.mlp:in")
    with pytest.raises(ConfigError, match="'t' is a"):
        feature_absorption(traced, candidate, config=CONFIG)
