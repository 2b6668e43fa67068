"""Every backend equals the reference in float64: values and every gradient."""

import pytest
import torch

from dictionary_learning import ops
from dictionary_learning.latents import Latents, SparseLatents, Support, to_dense
from dictionary_learning.ops import _pairs as pairs, _scan as scan

BACKENDS = [name for name in ops.available() if name not in ("reference", "triton")]
"""Triton has tests of its own, with shapes that are small enough for its interpreter."""
SHAPES = [
    (7, 5, 40, 1),
    (33, 16, 100, 4),
    (64, 24, 203, 25),
    (3, 8, 64, 64),
    (0, 8, 64, 3),
    (1, 1, 9, 1),
    (300, 64, 2000, 8),
    (200, 40, 1001, 100),
]
"""Tokens, width, latents, kept: no multiple of 8, k = 1, k = all, no token at all, many and few groups."""
ENCODERS = ["top_k", "batch_top_k"]


def encode(operation: str, x: torch.Tensor, W: torch.Tensor, b: torch.Tensor, argument, center=None) -> Latents:
    """Returns the latents of an operation on the backend in use; the argument is k, or a rule."""
    encoder = ops.Encoder(W, b, center)
    return getattr(encoder.backend, operation)(x, encoder, argument)


def decode(latents: SparseLatents, W: torch.Tensor) -> torch.Tensor:
    return ops.backend_for(W).decode(latents, W)


def tensors(n: int, d: int, f: int) -> dict[str, torch.Tensor]:
    return {
        "x": torch.randn(n, d),
        "center": torch.randn(d),
        "W_enc": torch.randn(f, d) / d**0.5,
        "b_enc": 0.1 * torch.randn(f),
        "W_dec": torch.randn(f, d),
    }


def run(backend: str, operation: str, dtype: torch.dtype, given: dict[str, torch.Tensor], k: int, fixed: tuple = ()):
    """Returns outputs and gradients of encode, then decode, under a loss that reaches everything."""
    leaves = {name: t.to(dtype).clone().requires_grad_(name not in fixed) for name, t in given.items()}
    x, center, W_enc, b_enc, W_dec = leaves.values()
    with ops.use_backend(backend):
        latents = encode(operation, x, W_enc, b_enc, k, center)
        x_hat = decode(latents, W_dec)
        (x_hat.sin().sum() + to_dense(latents).sum(-1).pow(2).mul(0.1).sum()).backward()
    gradients = {f"gradient of {name}": leaf.grad for name, leaf in leaves.items() if name not in fixed}
    return {"latents": to_dense(latents).detach(), "x_hat": x_hat.detach(), **gradients}


def compare(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Compares each with a tolerance relative to its largest value: such terms may cancel to anything."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.abs().max().item() if value.numel() else 1.0
        error = (got[name].double() - value).abs().max().item() if value.numel() else 0.0
        assert error <= tolerance * max(scale, 1.0), f"{name}: {error:.1e} of {scale:.1e}"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("operation", ENCODERS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("coarse", [False, True])
def test_form_equals_reference(backend, operation, shape, coarse, monkeypatch):
    monkeypatch.setattr(scan, "bfloat16_is_fast", lambda _: coarse)
    n, d, f, k = shape
    given = tensors(n, d, f)
    expected = run("reference", operation, torch.float64, given, k)
    compare(run(backend, operation, torch.float64, given, k), expected, 1e-12)
    # float32 rounds at 6e-8 of each term; a few hundred terms add up
    compare(run(backend, operation, torch.float32, given, k), expected, 2e-5)


@pytest.mark.parametrize("fixed", [("x",), ("x", "center"), ("W_enc", "b_enc"), ("W_dec",), ("center", "W_dec")])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_do_not_depend_on_which_others_are_wanted(backend, fixed):
    given = tensors(50, 12, 120)
    expected = run("reference", "top_k", torch.float64, given, 6, fixed)
    compare(run(backend, "top_k", torch.float64, given, 6, fixed), expected, 1e-12)


@pytest.mark.parametrize("operation", ENCODERS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_tensors_are_computed_with_in_float32(backend, operation, dtype):
    given = {name: t.to(dtype).float() for name, t in tensors(40, 16, 200).items()}
    expected = run("reference", operation, torch.float64, given, 5)
    got = run(backend, operation, dtype, given, 5)
    assert got["latents"].dtype == got["x_hat"].dtype == torch.float32
    assert got["gradient of W_enc"].dtype == dtype
    rounding = torch.finfo(dtype).eps
    compare({n: got[n] for n in ("latents", "x_hat")}, {n: expected[n] for n in ("latents", "x_hat")}, 2e-5)
    compare(got, expected, rounding)  # gradients are rounded to the weights' type, once


@pytest.mark.parametrize("operation", ENCODERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_fewer_positive_than_k_leaves_zeros_without_gradient(backend, operation):
    x, W = torch.ones(4, 3), -torch.ones(50, 3)
    W[7] = 1.0
    W.requires_grad_()
    with ops.use_backend(backend):
        latents = encode(operation, x, W, torch.zeros(50), 3)
        latents.values.sum().backward()
    assert to_dense(latents)[:, 7].tolist() == [3.0] * 4 and to_dense(latents).sum() == 12
    assert (W.grad.abs().sum(1) > 0).nonzero().tolist() == [[7]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_keep_equal_values(backend):
    x, W = torch.ones(4, 3), torch.ones(50, 3)
    with ops.use_backend(backend):
        latents = encode("top_k", x, W, torch.zeros(50), 5)
        together = encode("batch_top_k", x, W, torch.zeros(50), 5)
    assert (latents.values == 3).all() and (together.values == 3).all()
    assert all(len(set(row)) == 5 for row in latents.indices.tolist())
    assert together.values.shape == (20,) and (to_dense(together) > 0).sum() == 20


@pytest.mark.parametrize("operation", ENCODERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_of_zeros_keep_only_what_the_bias_makes_positive(backend, operation):
    b = torch.full((60,), -1.0)
    b[[3, 50]] = torch.tensor([0.25, 0.5])
    with ops.use_backend(backend):
        latents = encode(operation, torch.zeros(5, 4), torch.randn(60, 4), b, 4)
    expected = torch.zeros(5, 60)
    expected[:, 3], expected[:, 50] = 0.25, 0.5
    assert torch.equal(to_dense(latents), expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("operation", ENCODERS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("coarse", [False, True])
def test_a_token_that_is_not_finite_does_not_change_the_others(backend, operation, bad, coarse, monkeypatch):
    monkeypatch.setattr(scan, "bfloat16_is_fast", lambda _: coarse)
    given = tensors(20, 8, 300)
    x, W, b = given["x"].clone(), given["W_enc"], given["b_enc"]
    others = torch.arange(20) != 7
    x[7, 3] = bad
    with ops.use_backend(backend):
        latents = encode(operation, x, W, b, 4)
        if operation == "top_k":
            alone = to_dense(encode("top_k", x[others], W, b, 4))  # a product of another shape
            torch.testing.assert_close(to_dense(latents)[others], alone)
        elif bad != 3e38:  # which is finite, and may take all places
            assert to_dense(latents)[7].count_nonzero() == 0 and latents.values.isfinite().all()
            assert (to_dense(latents) != 0).sum() == 80


def test_ragged_support_decodes_as_its_dense_form():
    indices, offsets = torch.tensor([4, 1, 1, 0, 5]), torch.tensor([0, 2, 2, 5])
    values = torch.randn(5, dtype=torch.float64, requires_grad=True)
    W = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    latents = SparseLatents(values, Support(indices, 6, offsets))

    def decoded(values, W):
        return decode(SparseLatents(values, latents.support), W)

    torch.testing.assert_close(decoded(values, W), to_dense(latents) @ W)
    assert torch.autograd.gradcheck(decoded, (values, W))


def test_sums_are_the_same_for_tables_that_are_read_often(monkeypatch):
    support = Support(torch.stack([torch.randperm(40)[:30] for _ in range(50)]), 40)
    values, x, W = torch.randn(50, 30), torch.randn(50, 200), torch.randn(40, 200)
    whole = pairs.sum_over_kept(values, support, W), pairs.sum_over_tokens(values, support, x)
    monkeypatch.setattr(pairs, "_REUSE", 1)
    parts = pairs.sum_over_kept(values, support, W), pairs.sum_over_tokens(values, support, x)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)


def test_indices_are_64_bit():
    latents = encode("top_k", torch.randn(4, 3), torch.randn(50, 3), torch.zeros(50), 2)
    segments = latents.support.segments
    for tensor in (latents.indices, latents.support.tokens, latents.support.offsets, *segments):
        assert tensor.dtype == torch.int64


def test_take_rows_puts_gradients_in_their_places():
    W = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([5, 0, 7])
    assert torch.equal(ops.take_rows(W, rows), W[rows])
    assert torch.autograd.gradcheck(lambda W: ops.take_rows(W, rows).sin(), (W,))
    b = torch.randn(9, requires_grad=True)
    ops.take_rows(b, rows).sum().backward()
    assert b.grad.tolist() == [1, 0, 0, 0, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("operation", ENCODERS)
def test_gradient_check_of_the_reference(operation):
    arguments = [t.double().requires_grad_() for t in tensors(5, 4, 12).values()]

    def function(x, center, W_enc, b_enc, W_dec):
        return decode(encode(operation, x, W_enc, b_enc, 3, center), W_dec)

    with ops.use_backend("reference"):
        assert torch.autograd.gradcheck(function, arguments)
