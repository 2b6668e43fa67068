"""Wirings with more than one coder, by loops over them."""

import pytest
import torch

from dictionary_learning.dictionaries import WIRINGS, DictionaryShape
from dictionary_learning.dictionaries._parallel_coders import ParallelCoders
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES
from dictionary_learning.errors import ConfigError
from tests.contracts.dictionary_cases import (
    KINDS,
    X,
    kind,
    moved,
    wired,
)


@pytest.mark.parametrize("name", [n for n in KINDS if not NONLINEARITIES[n].is_tied])
def test_cross_layer_transcoder_is_a_double_loop(name):
    built = moved(WIRINGS["cross_layer_transcoder"].build(DictionaryShape((4, 6, 2), (3, 5, 4), 36), kind(name), None))
    latents = built.encode(X).split(12, dim=1)
    starts = [0, 3, 8, 12]
    for layer in range(3):
        expected = built.b_dec[starts[layer] : starts[layer + 1]].expand(24, -1)
        for source in range(layer + 1):
            first = starts[layer] - starts[source]
            width = starts[layer + 1] - starts[layer]
            expected = expected + latents[source] @ built.parts[source].W_dec[:, first : first + width]
        torch.testing.assert_close(built(X)[:, starts[layer] : starts[layer + 1]], expected)
    sources = torch.autograd.grad(built(X)[:, :3].sum(), built.parts[1].W_dec, allow_unused=True)
    assert sources[0].count_nonzero() == 0  # no layer writes what comes before it


@pytest.mark.parametrize("name", KINDS)
def test_heads_are_separate_autoencoders(name):
    built = wired("heads", name)
    for head in range(2):
        alone = WIRINGS["autoencoder"].build(DictionaryShape((6,), (6,), 20), kind(name), None)
        alone.load_state_dict(built.parts[head].state_dict())
        own = slice(6 * head, 6 * head + 6)
        torch.testing.assert_close(built(X)[:, own], alone(X[:, own]))
        torch.testing.assert_close(built.encode(X)[:, 20 * head : 20 * head + 20], alone.encode(X[:, own]))
        torch.testing.assert_close(built.decoder_norms()[20 * head : 20 * head + 20], alone.decoder_norms())


def test_skip_transcoder_needs_what_it_read():
    built = wired("skip_transcoder", "relu")
    latents = built.encode(X)
    with pytest.raises(ConfigError, match="give x too"):
        built.decode(latents)
    expected = latents @ built.W_dec + built.b_dec + X @ built.W_skip.T
    torch.testing.assert_close(built.decode(latents, X), expected)
    torch.testing.assert_close(built(X), expected)


def test_crosscoder_norms_are_summed_over_sites():
    built = wired("crosscoder", "relu")
    expected = built.W_dec[:, :7].norm(dim=1) + built.W_dec[:, 7:].norm(dim=1)
    torch.testing.assert_close(built.decoder_norms(), expected)


def test_decode_among_ranks_as_the_selection_does():
    built = wired("crosscoder", "top_k")
    with torch.no_grad():
        built.W_dec.mul_(torch.linspace(0.1, 3, len(built.W_dec)).unsqueeze(1))
    candidates = torch.arange(1, built.dict_size, 2)
    values = built.pre_activations(X, candidates).relu()
    kept = (values * built.decoder_norms()[candidates]).topk(4).indices
    expected = torch.zeros_like(values).scatter(1, kept, values.gather(1, kept)) @ built.W_dec[candidates]
    assert not kept.sort().values.equal(values.topk(4).indices.sort().values)
    torch.testing.assert_close(built.decode_among(X, candidates, 4), expected)


@pytest.mark.parametrize("wiring", list(WIRINGS))
def test_decode_among_takes_the_largest_of_the_candidates(wiring):
    built = wired(wiring, "relu")
    candidates = torch.tensor([1, 3, 8, 17, 19, 20, 22, 31, 39])
    pre = built.pre_activations(X)
    share = 4 // (len(built.parts) if isinstance(built, ParallelCoders) else 1)
    expected = torch.zeros(24, built.output_dim)
    for part in built.coders():
        own = [int(i) for i in candidates if part.latents.start <= i < part.latents.stop]
        values, order = pre[:, own].relu().topk(share)
        for n in range(24):
            for value, place in zip(values[n], order[n], strict=True):
                row = part.coder.W_dec[own[int(place)] - part.latents.start]
                expected[n, part.writes] += value * row
    torch.testing.assert_close(built.decode_among(X, candidates, 4), expected)
