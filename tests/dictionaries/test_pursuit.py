import itertools

import pytest
import torch

from dictionary_learning.dictionaries import AutoEncoderTopK, _pursuit as pursuit
from dictionary_learning.dictionaries._pursuit import gradient_pursuit
from dictionary_learning.errors import ConfigError
from dictionary_learning.grad_pursuit import grad_pursuit
from dictionary_learning.latents import to_dense
from dictionary_learning.ops import backend_for


def dense_pursuit(x, W, target_l0):
    """The published steps for one token after another, with the residual made anew each time."""
    found = torch.zeros(len(x), len(W), dtype=x.dtype)
    for token, f in zip(x, found, strict=True):
        chosen = torch.zeros(len(W), dtype=torch.bool)
        for _ in range(target_l0):
            residual = token - f @ W
            products = W @ residual
            if products.max() <= 1e-6 * (W @ token).max():
                break
            chosen[products.argmax()] = True
            gradient = products * chosen
            decoded = gradient @ W
            step = (decoded @ residual) / (decoded @ decoded)
            f.copy_((f + step * gradient).clamp_min(0))
    return found


def rows(n, dim, dtype=torch.float64):
    return torch.nn.functional.normalize(torch.randn(n, dim, dtype=dtype), dim=1)


@pytest.mark.parametrize(("n_tokens", "gram"), [(40, True), (4, False)], ids=["gram", "products"])
def test_pursuit_takes_the_published_steps(n_tokens, gram, monkeypatch):
    W, x = rows(30, 8), torch.randn(n_tokens, 8, dtype=torch.float64)
    monkeypatch.setattr(pursuit, "_CHUNK_ELEMENTS", 100)  # several chunks
    assert (len(W) <= n_tokens * 6) == gram
    latents = gradient_pursuit(x, W, 6)
    expected = dense_pursuit(x, W, 6)
    torch.testing.assert_close(to_dense(latents), expected)
    assert (latents.values > 0).all()
    # the case in which weights are cut at zero, and rows come again, is among them
    assert ((expected > 0).sum(1) < 6).any()


def test_candidates_are_enough_where_they_hold_all_that_is_taken():
    W, x = rows(50, 12), torch.randn(20, 12, dtype=torch.float64)
    expected = dense_pursuit(x, W, 5)
    torch.testing.assert_close(to_dense(gradient_pursuit(x, W, 5, candidates=49)), expected)
    torch.testing.assert_close(to_dense(gradient_pursuit(x, W, 5, candidates=1000)), expected)


def test_pursuit_among_candidates_is_pursuit_in_the_dictionary_of_these():
    W, x = rows(50, 12), torch.randn(20, 12, dtype=torch.float64)
    found = to_dense(gradient_pursuit(x, W, 5, candidates=7))
    for token, latents in zip(x, found, strict=True):
        near = (W @ token).topk(7).indices
        torch.testing.assert_close(latents[near], dense_pursuit(token[None], W[near], 5)[0])
        assert latents.count_nonzero() == latents[near].count_nonzero()


def test_orthogonal_latents_are_found_exactly():
    W = torch.linalg.qr(torch.randn(16, 16)).Q
    true = torch.zeros(30, 16).scatter(1, torch.rand(30, 16).topk(3).indices, 1 + torch.rand(30, 3))
    found = to_dense(gradient_pursuit(true @ W, W, 12))
    # 12 rounds refine the weights of 3, and nothing is added for what rounding leaves
    assert torch.equal(found > 0, true > 0)
    torch.testing.assert_close(found, true, rtol=1e-2, atol=1e-3)


def test_more_rounds_come_nearer():
    W, x = rows(60, 10, torch.float32), torch.randn(50, 10)
    errors = [(x - backend_for(W).decode(gradient_pursuit(x, W, k), W)).square().sum(1) for k in (1, 2, 4, 8, 16)]
    assert all((later <= earlier + 1e-5).all() for earlier, later in itertools.pairwise(errors))


def test_zero_opposite_and_broken_activations_get_no_latents():
    W = torch.eye(3)
    x = torch.tensor([[0.0, 0, 0], [-1, -2, -3], [torch.nan, 1, 1], [torch.inf, 1, 1], [0, 2, 0]])
    found = to_dense(gradient_pursuit(x, W, 3))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0, 0]] * 4 + [[0, 2, 0]]))
    assert gradient_pursuit(x[:0], W, 3).support.n_tokens == 0


def test_stored_in_bfloat16_it_computes_in_float32():
    W, x = rows(30, 8).bfloat16(), torch.randn(5, 8).bfloat16()
    found = gradient_pursuit(x, W, 4)
    assert found.values.dtype == torch.float32
    torch.testing.assert_close(to_dense(found), dense_pursuit(x.float(), W.float(), 4), rtol=1e-4, atol=1e-5)


def test_old_address_has_directions_in_columns():
    W, x = rows(30, 8, torch.float32), torch.randn(9, 8)
    assert torch.equal(grad_pursuit(x, W.T, target_l0=4), to_dense(gradient_pursuit(x, W, 4)))


def test_settings_that_cannot_be_used_are_refused():
    W, x = rows(30, 8, torch.float32), torch.randn(9, 8)
    with pytest.raises(ConfigError, match="target_l0=0 in gradient_pursuit; it must be at least 1"):
        gradient_pursuit(x, W, 0)
    with pytest.raises(ConfigError, match="candidates"):
        gradient_pursuit(x, W, 4, candidates=3)


def test_activations_and_decoders_that_do_not_fit_are_refused(as_for_a_user):
    x, d = torch.randn(9, 8), AutoEncoderTopK(8, 30, 3)
    with pytest.raises(ConfigError, match=r"it must be Float\[Tensor, 'dict_size dim'\]"):
        gradient_pursuit(x, d, 3)
    for given in ((x[0], d.W_dec), (x[:, :5], d.W_dec), (x, d.W_dec.T), (x[None], d.W_dec)):
        with pytest.raises(ConfigError, match=r"needs tensors \(batch, dim\) and \(dict_size, dim\)"):
            gradient_pursuit(*given, 3)
