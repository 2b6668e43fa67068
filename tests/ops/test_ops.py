"""Every form of an operation equals the reference in float64: values and every gradient."""

import pytest
import torch

from dictionary_learning import ops
from dictionary_learning.errors import UnknownNameError
from dictionary_learning.latents import to_dense
from dictionary_learning.ops import scan

BACKENDS = [name for name in ops.available() if name != "reference"]
SHAPES = [(7, 5, 40, 1), (33, 16, 100, 4), (64, 24, 203, 25), (3, 8, 64, 64), (0, 8, 64, 3), (1, 1, 9, 1)]
"""Tokens, width, latents, kept: widths that are no multiple of 8, k = 1, k = all, and no token at all."""


def run(backend: str, dtype: torch.dtype, tensors: list[torch.Tensor], k: int) -> dict[str, torch.Tensor]:
    """Returns outputs and gradients of encode, then decode, under a loss that reaches everything."""
    x, W_enc, b_enc, W_dec = (t.to(dtype).clone().requires_grad_() for t in tensors)
    with ops.use_backend(backend):
        latents = ops.topk_encode(x, W_enc, b_enc, k)
        x_hat = ops.sparse_decode(latents, W_dec)
        (x_hat.sin().sum() + (latents.values.sum(-1).pow(2)).sum()).backward()
    gradients = {"x": x.grad, "W_enc": W_enc.grad, "b_enc": b_enc.grad, "W_dec": W_dec.grad}
    return {"latents": to_dense(latents).detach(), "x_hat": x_hat.detach(), **gradients}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_form_equals_reference(backend, shape):
    n, d, f, k = shape
    tensors = [torch.randn(n, d), torch.randn(f, d) / d**0.5, 0.1 * torch.randn(f), torch.randn(f, d)]
    expected, got = run("reference", torch.float64, tensors, k), run(backend, torch.float32, tensors, k)
    for name, value in expected.items():
        # float32 rounds at 6e-8 of the terms; sums of a few hundred terms of size 10 may cancel to anything
        torch.testing.assert_close(
            got[name].double(), value, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_fewer_positive_than_k_keeps_zeros_without_gradient(backend):
    x, W = torch.ones(4, 3), -torch.ones(50, 3)
    W[7] = 1.0
    W.requires_grad_()
    with ops.use_backend(backend):
        latents = ops.topk_encode(x, W, torch.zeros(50), 3)
        latents.values.sum().backward()
    assert latents.values.sort(descending=True).values.tolist() == [[3.0, 0.0, 0.0]] * 4
    assert (W.grad.abs().sum(1) > 0).nonzero().tolist() == [[7]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_keep_equal_values(backend):
    x, W = torch.ones(4, 3), torch.ones(50, 3)
    with ops.use_backend(backend):
        latents = ops.topk_encode(x, W, torch.zeros(50), 5)
    assert (latents.values == 3).all()
    assert all(len(set(row)) == 5 for row in latents.indices.tolist())


def test_coarse_selection_equals_that_of_float32(monkeypatch):
    """On activations with a large mean and uneven variances, as real ones, whatever this machine is fast at."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -1.5, 64)
    x = torch.randn(512, 64, generator=generator) * scales
    W = torch.nn.functional.normalize(torch.randn(2048, 64, generator=generator), dim=-1)
    b = 0.01 * torch.randn(2048, generator=generator)
    exact = (x.double() @ W.double().T + b.double()).topk(32).indices.sort(-1).values
    monkeypatch.setattr(scan, "bfloat16_is_fast", lambda _: True)
    with ops.use_backend("sparse"):
        coarse = ops.topk_encode(x, W, b, 32).indices.sort(-1).values
    assert torch.equal(coarse, exact)


def test_gradient_check_of_the_reference():
    tensors = [torch.randn(5, 4), torch.randn(12, 4), torch.randn(12), torch.randn(12, 4)]
    arguments = [t.double().requires_grad_() for t in tensors]

    def function(x, W_enc, b_enc, W_dec):
        return ops.sparse_decode(ops.topk_encode(x, W_enc, b_enc, 3), W_dec)

    with ops.use_backend("reference"):
        assert torch.autograd.gradcheck(function, arguments)


def test_backend_is_chosen_by_name_and_by_variable(monkeypatch):
    monkeypatch.setenv("DICTIONARY_LEARNING_BACKEND", "reference")
    assert "reference" in ops.status(torch.device("cpu"))["topk_encode"]
    monkeypatch.setenv("DICTIONARY_LEARNING_BACKEND", "fast")
    with pytest.raises(UnknownNameError, match="Unknown backend 'fast'"):
        ops.topk_encode(torch.ones(1, 2), torch.ones(9, 2), torch.zeros(9), 1)
    with pytest.raises(UnknownNameError), ops.use_backend("nothing"):
        pass
