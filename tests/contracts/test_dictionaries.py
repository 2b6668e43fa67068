"""What every dictionary promises: all wirings with all nonlinearities, and the classes by name."""

import copy

import pytest
import torch

from dictionary_learning import AutoEncoderTopK, IdentityDict, ops
from dictionary_learning.dictionaries import DICTIONARIES, WIRINGS, LeaveOneOut, Normalized, Trainable
from dictionary_learning.dictionaries._serialization import load_dictionary, save_dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.experimental.temporal import TemporalAutoencoder
from dictionary_learning.latents import SparseLatents, to_dense
from dictionary_learning.ops import _selection as chosen
from tests.contracts.dictionary_cases import (
    ANY,
    NAMED,
    OPTIONS,
    PAIRS,
    SHAPES,
    X,
    build,
    close,
    objective,
    wired,
    with_gradients,
)

OTHERS = {
    "IdentityDict": lambda: IdentityDict(12),
    "Normalized": lambda: Normalized(AutoEncoderTopK(12, 32, 3), "layer_norm_eps_in"),
    "LeaveOneOut": lambda: LeaveOneOut(AutoEncoderTopK(12, 32, 3), 0.1),
    # tokens of a context depend on each other
    "TemporalAutoencoder": lambda: TemporalAutoencoder(12, 32, 3, n_heads=2, bottleneck_factor=4),
}
"""Classes with promises of their own."""


def test_every_wiring_and_class_is_tested():
    assert set(SHAPES) == set(WIRINGS)
    wirings = {type(wired(name, "relu")) for name in WIRINGS}
    assert wirings | {DICTIONARIES[name] for name in [*NAMED, *OTHERS]} == {DICTIONARIES[n] for n in DICTIONARIES}


@pytest.mark.parametrize("case", ANY, ids=str)
@pytest.mark.parametrize("lead", [(24,), (4, 6), (2, 3, 4), (0,), (2, 0), ()], ids=str)
def test_leading_dimensions_do_not_matter(case, lead):
    built = build(case)
    n = torch.Size(lead).numel()
    flat, x = X[:n], X[:n].view(*lead, 12)
    latents = built.encode(x)
    assert latents.shape == (*lead, built.dict_size)
    torch.testing.assert_close(latents.view(n, built.dict_size), built.encode(flat))
    x_hat = built(x)
    assert x_hat.shape == (*lead, built.output_dim) == built.decode_with(latents, x).shape
    torch.testing.assert_close(x_hat.view(n, built.output_dim), built(flat))


@pytest.mark.parametrize("case", ANY, ids=str)
def test_all_ways_give_the_same(case):
    built = build(case)
    latents = built.encode(X)
    expected = built.decode_with(latents, X)
    torch.testing.assert_close(built(X), expected)
    x_hat, shown = built(X, output_features=True)
    torch.testing.assert_close(x_hat, expected)
    if case == "AutoEncoderNew":
        latents = latents * built.decoder_norms()
    torch.testing.assert_close(shown, latents)
    whole = built.reconstruct(X)
    torch.testing.assert_close(whole.outputs, expected)
    torch.testing.assert_close(to_dense(whole.latents), built.encode(X))
    if whole.pre_activations is not None:
        assert isinstance(whole.pre_activations, SparseLatents) == isinstance(whole.latents, SparseLatents)


@pytest.mark.parametrize("case", [*PAIRS, *NAMED], ids=str)
def test_training_latents_are_those_of_inference(case):
    built = build(case)
    latents, _ = built.encode_latents(X)
    by_batch = any(c.coder.nonlinearity.__class__.__name__ == "BatchTopK" for c in built.coders())
    if by_batch:  # a threshold takes the place of the batch's cut
        assert (to_dense(latents) != 0).sum() == 24 * 3 * len(list(built.coders()))
        assert not torch.equal(to_dense(latents), built.encode(X))
    else:
        torch.testing.assert_close(to_dense(latents), built.encode(X))
    torch.testing.assert_close(built.decode_latents(latents, X), built.decode_with(to_dense(latents), X))
    frozen = built.decode_latents(latents, X, frozen=True)
    assert torch.equal(frozen, built.decode_latents(latents, X))
    reached = torch.autograd.grad(frozen.sum(), [p for _, p in built.named_parameters()], allow_unused=True)
    written = [n for (n, _), g in zip(built.named_parameters(), reached, strict=True) if g is not None]
    tied = any(part.coder.is_tied for part in built.coders())
    assert tied or not any(n.endswith(("W_dec", "W_skip")) for n in written)


@pytest.mark.parametrize("density", ["many", "few", "mixed"])
@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_backends_agree_in_values_and_every_gradient(case, density, monkeypatch):
    """With few latents the sparse forms are used; where only one of several parts has few, forms are mixed."""
    monkeypatch.setattr(chosen, "_DENSE_FROM", 1 / 8)  # of so few latents one is a large share
    built = build(case)
    with torch.no_grad():
        for part in list(built.coders())[: {"many": 0, "few": None, "mixed": 1}[density]]:
            nonlinearity = part.coder.nonlinearity
            for bias in (part.coder.b_enc, getattr(nonlinearity, "gate_bias", None)):
                if bias is not None:
                    bias.sub_(3)
                    bias[0] = 0.3  # one that is often on, and near its threshold where it is not
            if case[1] == "jump_relu":
                nonlinearity.threshold[0] = 0.1
    with ops.use_backend("sparse"):
        form = built.encode_latents(X)[0]
    if case[1] in OPTIONS and case[1] != "identity":  # which is never sparse
        assert isinstance(form, SparseLatents) == (density != "many")
    expected = with_gradients(copy.deepcopy(built).double(), X.double())
    close(with_gradients(copy.deepcopy(built).double(), X.double(), "sparse"), expected, 1e-12)
    close(with_gradients(built, X, "sparse"), expected, 2e-5)  # float32 rounds at 6e-8 of each of some hundred terms


@pytest.mark.parametrize("case", [*PAIRS, *NAMED], ids=str)
def test_gradients_are_those_of_finite_differences_and_reach_every_parameter(case):
    built = build(case).double()
    found = with_gradients(built, X.double(), None)
    generator = torch.Generator().manual_seed(2)
    for name, p in built.named_parameters():
        gradient = found[f"gradient of {name}"]
        assert gradient.abs().sum() > 0, name
        if name.endswith("threshold") or "gate_bias" in name:
            continue  # estimated (tests/ops/test_straight_through.py); passes by the gate through the auxiliary loss only
        direction = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        losses = []
        with torch.no_grad():
            for step in (1e-6, -2e-6, 1e-6):
                p.add_(direction, alpha=step)
                losses.append(float(objective(built, X.double())[0]))
        slope = (losses[0] - losses[1]) / 2e-6
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("case", ANY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_is_the_same_to_the_bit(case, dtype, tmp_path):
    built = build(case).to(dtype)
    loaded = load_dictionary(save_dictionary(built, tmp_path / "d"))
    assert type(loaded) is type(built) and loaded.options() == built.options() and loaded.dtype == built.dtype
    for name, tensor in built.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor) and loaded.state_dict()[name].dtype == tensor.dtype
    assert torch.equal(loaded(X), built(X))
    if isinstance(built, Trainable):
        ours, theirs = (to_dense(d.encode_latents(X)[0]) for d in (built, loaded))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("case", [*PAIRS, *NAMED], ids=str)
def test_scaling_turns_a_dictionary_of_scaled_activations_into_one_of_raw(case):
    built = build(case)
    x_hat, latents = built(X / 2.5, output_features=True)
    norms = built.decoder_norms()
    one_scale = any(part.coder.centered or part.coder.is_tied for part in built.coders())
    if one_scale:
        before = copy.deepcopy(built.state_dict())
        with pytest.raises(ConfigError, match="has one scale"):
            built.scale_(2.5, 0.7)
        assert all(torch.equal(before[name], tensor) for name, tensor in built.state_dict().items())
    outputs = 2.5 if one_scale else 0.7
    built.scale_(2.5, None if one_scale else outputs)
    again, scaled = built(X, output_features=True)
    torch.testing.assert_close(again, x_hat * outputs)
    torch.testing.assert_close(scaled, latents * (outputs if case == "AutoEncoderNew" else 2.5))
    torch.testing.assert_close(built.decoder_norms(), norms * outputs / 2.5)


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_thresholds_stay_float32(case):
    built = build(case)
    before = {name: t.clone() for name, t in built.state_dict().items()}
    built.to(torch.bfloat16)
    assert built.dtype == torch.bfloat16
    for name, tensor in built.state_dict().items():
        if name.endswith("threshold"):
            assert torch.equal(tensor, before[name])
        else:
            assert tensor.dtype == torch.bfloat16
    assert built(X).dtype == torch.float32 and built(X).isfinite().all()


@pytest.mark.parametrize("case", ANY, ids=str)
def test_a_copy_is_the_same_and_apart(case):
    built = build(case)
    other = copy.deepcopy(built)
    expected = built(X)
    assert torch.equal(other(X), expected)
    with torch.no_grad():
        for p in other.parameters():
            p.fill_(7.0)
    assert torch.equal(built(X), expected)


@pytest.mark.parametrize("case", ANY, ids=str)
def test_tokens_do_not_influence_each_other_at_inference(case):
    built = build(case)
    others = 30 * torch.randn(24, 12)
    others[5] = X[5]
    torch.testing.assert_close(built.encode(others)[5], built.encode(X)[5])
    torch.testing.assert_close(built(others)[5], built(X)[5])


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_an_empty_batch_has_zero_gradients(case):
    built = build(case)
    objective(built, X[:0])[0].backward()
    assert next(built.coders()).coder.W_dec.grad is not None
    assert all(p.grad is None or not p.grad.count_nonzero() for p in built.parameters())


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("lead", [(0, 4), (2, 0), (0,), (0, 2, 3)], ids=str)
def test_every_class_takes_an_empty_batch(name, lead):
    built, x = OTHERS[name](), torch.zeros(*lead, 12)
    latents = built.encode(x)
    assert latents.shape == (*lead, built.dict_size)
    assert built(x).shape == built.decode_with(latents, x).shape == (*lead, 12)
    x_hat, shown = built(x, output_features=True)
    assert x_hat.shape == (*lead, 12) and shown.shape == latents.shape


@pytest.mark.parametrize("case", ANY, ids=str)
def test_autocast_of_the_caller_changes_nothing(case):
    built = build(case)
    with torch.no_grad():
        latents, x_hat = built.encode(X), built(X)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(built.encode(X), latents) and torch.equal(built(X), x_hat)
            again = built.decode_with(latents, X)
        assert torch.equal(again, built.decode_with(latents, X))
