"""Terms of losses, by loops."""

import pytest
import torch
from torch import Tensor

from dictionary_learning.dictionaries import WIRINGS, DictionaryShape, Trainable
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES
from dictionary_learning.latents import SparseLatents, Support, to_dense
from dictionary_learning.trainers import _losses as losses

SHAPES = {
    "autoencoder": DictionaryShape((6,), (6,), 20),
    "transcoder": DictionaryShape((6,), (4,), 20),
    "skip_transcoder": DictionaryShape((6,), (4,), 20),
    "crosscoder": DictionaryShape((2, 4), (2, 4), 20),
    "cross_layer_transcoder": DictionaryShape((2, 4), (3, 2), 20),
    "heads": DictionaryShape((6,), (6,), 20, n_heads=2),
}
DEAD = torch.tensor([0, 3, 4, 8, 9, 10, 13, 19])
wirings = pytest.mark.parametrize("wiring", list(WIRINGS))


def build(wiring: str, name: str = "relu", **options) -> Trainable:
    built = WIRINGS[wiring].build(SHAPES[wiring], NONLINEARITIES[name](**options), None)
    with torch.no_grad():
        for n, p in built.named_parameters():
            p.add_(torch.rand_like(p) if n.endswith("threshold") else 0.3 * torch.randn_like(p))
    return built


def rows(built: Trainable) -> Tensor:
    """Returns what each latent writes of the whole output: (dict_size, output_dim)."""
    whole = torch.zeros(built.dict_size, built.output_dim)
    for part in built.coders():
        whole[part.latents, part.writes] = part.coder.W_dec
    return whole


def data(built: Trainable) -> tuple[Tensor, Tensor]:
    return torch.randn(5, 6), torch.randn(5, built.output_dim)


def gradients(loss: Tensor, built: Trainable) -> dict[str, Tensor]:
    names, parameters = zip(*built.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def test_squared_error_is_a_mean_over_tokens():
    x_hat, x = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert float(losses.squared_error(x_hat, x)) == (5 + 9) / 2


@pytest.mark.parametrize("k_aux", [2, 4, 32])
@wirings
def test_auxk_by_loops(wiring, k_aux):
    built = build(wiring)
    x, residual = data(built)
    pre, D, parts = built.pre_activations(x), rows(built), list(built.coders())
    predicted = torch.zeros_like(residual)
    for n in range(5):
        for part in parts:  # each has its share of the k_aux places
            own = [i for i in DEAD.tolist() if part.latents.start <= i < part.latents.stop]
            largest = sorted(own, key=lambda i, n=n: -pre[n, i].item())[: max(k_aux // len(parts), 1)]
            for i in largest:
                predicted[n] = predicted[n] + pre[n, i].relu() * D[i]
    expected = (predicted - residual).pow(2).sum(1).mean() / 3 * min(8 / k_aux, 1)
    found = losses.auxk_loss(built, x, residual, DEAD, k_aux, torch.tensor(3.0))
    torch.testing.assert_close(found, expected)
    ours, theirs = gradients(found, built), gradients(expected, built)
    for name, gradient in ours.items():
        if name.endswith(("b_dec", "W_skip")):
            assert not gradient.any()  # held constant: what the living latents left is what dead ones have to predict
        else:
            torch.testing.assert_close(gradient, theirs[name])
            living = [i for i in range(20) if i not in DEAD.tolist()]
            per_latent = gradient if len(gradient) == 20 else None
            assert per_latent is None or not per_latent[living].any()


def test_auxk_of_nothing_to_explain_is_zero():
    built = build("autoencoder")
    built.W_enc.data.zero_(), built.b_enc.data.zero_()
    zero = losses.auxk_loss(built, torch.randn(5, 6), torch.zeros(5, 6), DEAD, 4, torch.tensor(0.0))
    assert zero.item() == 0


@wirings
def test_ghost_loss_by_loops(wiring):
    built = build(wiring)
    x, residual = data(built)
    pre, D = built.pre_activations(x), rows(built)
    terms = []
    for n in range(5):
        ghost = sum((pre[n, i].exp() * D[i] for i in DEAD.tolist()), torch.zeros(built.output_dim))
        factor = (residual[n].norm() / (2 * ghost.norm())).detach()
        terms.append((residual[n] - factor * ghost).pow(2).sum())
    plain = torch.stack(terms).mean()
    expected = plain * (7.0 / plain.detach())
    found = losses.ghost_loss(built, x, residual, DEAD, torch.tensor(7.0))
    torch.testing.assert_close(found, torch.tensor(7.0))  # it is given the size of the reconstruction's loss
    ours, theirs = gradients(found, built), gradients(expected, built)
    for name in ours:
        if not name.endswith("b_dec"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_ghost_loss_is_finite_for_large_pre_activations():
    built = build("autoencoder")
    found = losses.ghost_loss(built, 1e4 * torch.randn(5, 6), torch.randn(5, 6), DEAD, torch.tensor(1.0))
    assert all(gradient.isfinite().all() for gradient in gradients(found, built).values())


@wirings
@pytest.mark.parametrize(
    ("name", "options"), [("relu", {}), ("jump_relu", {"initial_threshold": 0.2}), ("top_k", {"k": 2})]
)
def test_pre_activation_loss_by_loops(wiring, name, options):
    built = build(wiring, name, **options)
    x, _ = data(built)
    pre, norms = built.pre_activations(x), built.decoder_norms()
    least = torch.zeros(20)
    if name == "jump_relu":
        least = torch.cat([part.coder.nonlinearity.threshold for part in built.coders()])
    expected = sum((least[i] - pre[n, i]).relu() * norms[i] for n in range(5) for i in DEAD.tolist()) / 5
    found = losses.pre_activation_loss(built, x, DEAD)
    torch.testing.assert_close(found, expected)
    ours, theirs = gradients(found, built), gradients(expected, built)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("form", ["dense", "even", "ragged"])
def test_sums_are_the_same_in_every_form(form):
    dense = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    latents = {
        "dense": dense,
        "even": SparseLatents(
            torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 4.0]]), Support(torch.tensor([[2, 1], [0, 1], [2, 0]]), 3)
        ),
        "ragged": SparseLatents(
            torch.tensor([2.0, 1.0, 4.0]), Support(torch.tensor([1, 2, 0]), 3, torch.tensor([0, 2, 2, 3]))
        ),
    }[form]
    assert torch.equal(to_dense(latents), dense)
    assert losses.per_token(latents).tolist() == [3, 0, 4]
    assert float(losses.mean_sum(latents)) == pytest.approx(7 / 3)
    weights = torch.tensor([10.0, 1.0, 0.5])
    assert float(losses.weighted(latents, weights).sum()) == 2 + 0.5 + 40
    assert losses.weighted(latents, None) is (latents if form == "dense" else latents.values)
