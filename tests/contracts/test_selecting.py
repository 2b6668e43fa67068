"""What nonlinearities keep, found by loops."""

import pytest
import torch
from torch import Tensor

from dictionary_learning import ops
from dictionary_learning.dictionaries import WIRINGS
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES, MatchingPursuit
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import to_dense
from dictionary_learning.trainers import TRAINERS
from tests.contracts.dictionary_cases import SELECTING, SHAPES, X, build, kind, moved, wired


@pytest.mark.parametrize("wiring", list(WIRINGS))
@pytest.mark.parametrize("name", SELECTING)
def test_more_latents_than_there_are_cannot_be_kept(wiring, name):
    shape = SHAPES[wiring]
    with pytest.raises(ConfigError, match=r"cannot keep k=41 of dict_size|has one matrix for both"):
        WIRINGS[wiring].build(shape, NONLINEARITIES[name](k=41), None)


@pytest.mark.parametrize("wiring", list(WIRINGS))
def test_batch_top_k_without_a_threshold_is_never_dense(wiring):
    built = WIRINGS[wiring].build(SHAPES[wiring], kind("batch_top_k"), None)
    for attempt in (built.encode, built, built.reconstruct):
        with pytest.raises(ConfigError, match="no learnt threshold"):
            attempt(X)
    assert (to_dense(built.encode_latents(X)[0]) != 0).sum() <= 24 * 3 * len(list(built.coders()))


@pytest.mark.parametrize("lead", [(24,), (4, 6), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_batch_top_k_keeps_k_for_each_token_of_all_dimensions(name, lead):
    built = build(name)
    norms = built.decoder_norms() if built.rank_by_norm else torch.ones(40)
    latents = built.encode(X.view(*lead, 12), use_threshold=False)
    ranks = (built.pre_activations(X).relu() * norms).flatten()
    cut = ranks.sort(descending=True).values[24 * 3 - 1]
    expected = built.pre_activations(X).flatten() * (ranks >= cut)
    torch.testing.assert_close(latents.flatten(), expected)
    assert (latents > 0).sum() == 24 * 3


def kept_by_loops(name: str, pre: Tensor, k: int) -> Tensor:
    """Returns a mask of the latents that a nonlinearity keeps, found one by one."""
    mask = torch.zeros_like(pre, dtype=torch.bool)
    order = sorted(((float(v), n, i) for n, row in enumerate(pre) for i, v in enumerate(row)), reverse=True)
    if name == "batch_top_k":
        for _, n, i in order[: k * len(pre)]:
            mask[n, i] = True
    for n, row in enumerate(pre):
        if name in ("top_k", "abs_top_k"):
            sizes = row.abs() if name == "abs_top_k" else row
            for i in sorted(range(len(row)), key=lambda i, sizes=sizes: -float(sizes[i]))[:k]:
                mask[n, i] = True
        if name == "group_max":
            start = 0
            for group in range(k):
                stop = start + len(row) // k + (group < len(row) % k)
                mask[n, max(range(start, stop), key=lambda i, row=row: float(row[i]))] = True
                start = stop
            assert start == len(row)
    return mask if name == "abs_top_k" else mask & (pre > 0)


@pytest.mark.parametrize("backend", ["reference", "sparse"])
@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize("k", [1, 3, 7, 39, 40])
@pytest.mark.parametrize("name", ["top_k", "batch_top_k", "group_max", "abs_top_k"])
def test_what_is_kept_is_found_by_loops(name, k, ranked, backend):
    """The values and gradients are those of plain pre-activations, whatever they are ranked by."""
    built = moved(WIRINGS["crosscoder"].build(SHAPES["crosscoder"], NONLINEARITIES[name](k), None, rank_by_norm=ranked))
    built = built.double()
    norms = sum(d.norm(dim=1) for d in built.site_decoders) if ranked else torch.ones(40)
    pre = built.pre_activations(X[:6].double())
    mask = kept_by_loops(name, (pre * norms).detach(), k)
    with ops.use_backend(backend):
        latents = to_dense(built.encode_latents(X[:6].double())[0])
    torch.testing.assert_close(latents, pre * mask)
    weights = torch.randn_like(pre)
    wanted = [built.W_enc, built.b_enc]
    got, expected = (torch.autograd.grad((v * weights).sum(), wanted) for v in (latents, pre * mask))
    torch.testing.assert_close(got, expected)
    if name == "abs_top_k" and k > 1:
        assert (latents < 0).any() and (latents > 0).any()


@pytest.mark.parametrize(("k", "dict_size"), [(1, 7), (3, 7), (6, 7), (7, 7), (4, 10), (5, 40)])
def test_group_max_takes_any_number_of_groups(k, dict_size):
    nonlinearity = NONLINEARITIES["group_max"](k)
    nonlinearity.setup(dict_size)
    pre = torch.randn(2, 4, dict_size)
    expected = pre * kept_by_loops("group_max", pre.view(8, -1), k).view_as(pre)
    assert torch.equal(nonlinearity(pre), expected)


@pytest.mark.parametrize("name", ["top_k", "batch_top_k", "group_max", "abs_top_k"])
def test_latents_that_write_nothing_yet_are_ranked_as_they_are(name):
    plain, ranked = (wired("transcoder", name, rank_by_norm=ranked) for ranked in (False, True))
    ranked.load_state_dict(plain.state_dict())
    ranked.W_dec.data.zero_()
    ours, theirs = (to_dense(d.encode_latents(X)[0]) for d in (plain, ranked))
    torch.testing.assert_close(ours, theirs)
    assert ranked(X).isfinite().all()


@pytest.mark.parametrize("n_tokens", [4, 24])  # with products of rows with each other, or without
@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("wiring", ["autoencoder", "crosscoder"])
def test_matching_pursuit_is_what_a_loop_finds(wiring, k, n_tokens):
    built = moved(WIRINGS[wiring].build(SHAPES[wiring], MatchingPursuit(k), None)).double()
    D, x = built.W_dec, X[:n_tokens].double()
    rows = []
    for token in x:
        rest = token - built.b_dec if built.centered else token
        taken, latents = [], torch.zeros(40, dtype=torch.float64)
        for _ in range(k):
            i = max((i for i in range(40) if i not in taken), key=lambda i, rest=rest: float((rest @ D[i]).detach()))
            value = (rest @ D[i]).relu()
            latents = latents + value * torch.nn.functional.one_hot(torch.tensor(i), 40)
            rest = rest - value * D[i]
            taken.append(i)
        rows.append(latents)
    expected, got = torch.stack(rows), built.encode(x)
    torch.testing.assert_close(got, expected)
    weights = torch.randn_like(got)
    ours, theirs = (torch.autograd.grad((v * weights).sum(), D)[0] for v in (got, expected))
    torch.testing.assert_close(ours, theirs)


class TestMatryoshka:
    @pytest.fixture
    def trainer(self):
        config = {"activation_dim": 12, "dict_size": 40, "k": 3, "steps": 10, "device": "cpu"}
        built = TRAINERS["matryoshka_batch_top_k"](**config, group_fractions=(0.1, 0.2, 0.7))
        moved(built.dictionary).double()
        return built

    def test_prefixes_are_as_many_dense_decodes(self, trainer):
        dictionary = trainer.dictionary
        latents, _ = dictionary.encode_latents(X.double())
        assert trainer.settings.group_sizes == [4, 8, 28]
        got = trainer.decode_prefixes(latents)
        expected = [to_dense(latents)[:, :end] @ dictionary.W_dec[:end] for end in (4, 12, 40)]
        torch.testing.assert_close(list(got), expected)
        weights = [torch.randn_like(prefix) for prefix in got]
        wanted = [dictionary.W_enc, dictionary.W_dec, dictionary.b_enc, dictionary.b_dec]
        ours, theirs = (
            torch.autograd.grad(
                sum((w * p.sin()).sum() for w, p in zip(weights, prefixes, strict=True)), wanted, retain_graph=True
            )
            for prefixes in (got, expected)
        )
        torch.testing.assert_close(ours, theirs)

    def test_fewer_groups_are_a_smaller_dictionary(self):
        built = build("MatryoshkaBatchTopKSAE")
        whole = built.encode(X)
        built.active_groups = 1
        assert torch.equal(built.encode(X)[:, :10], whole[:, :10]) and not built.encode(X)[:, 10:].any()
        expected = whole[:, :10] @ built.W_dec[:10] + built.b_dec
        torch.testing.assert_close(built(X), expected)
        torch.testing.assert_close(built.decode(whole), expected)
