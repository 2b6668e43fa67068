"""Every form of an operation equals the reference in float64: values and every gradient."""

import pytest
import torch

from dictionary_learning import ops
from dictionary_learning.errors import UnknownNameError
from dictionary_learning.latents import SparseLatents, Support, to_dense
from dictionary_learning.ops import pairs, scan

BACKENDS = [name for name in ops.available() if name not in ("reference", "triton")]
"""Triton has tests of its own, with shapes that its interpreter can bear."""
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
"""Tokens, width, latents, kept: widths that are no multiple of 8, k = 1, k = all, no token at all, many and few groups."""
ENCODERS = ["topk_encode", "batch_topk_encode"]


def tensors(n: int, d: int, f: int) -> dict[str, torch.Tensor]:
    return {
        "x": torch.randn(n, d),
        "center": torch.randn(d),
        "W_enc": torch.randn(f, d) / d**0.5,
        "b_enc": 0.1 * torch.randn(f),
        "W_dec": torch.randn(f, d),
    }


def run(backend: str, encode: str, dtype: torch.dtype, given: dict[str, torch.Tensor], k: int, fixed: tuple = ()):
    """Returns outputs and gradients of encode, then decode, under a loss that reaches everything."""
    leaves = {name: t.to(dtype).clone().requires_grad_(name not in fixed) for name, t in given.items()}
    x, center, W_enc, b_enc, W_dec = leaves.values()
    with ops.use_backend(backend):
        latents = getattr(ops, encode)(x, W_enc, b_enc, k, center=center)
        x_hat = ops.sparse_decode(latents, W_dec)
        (x_hat.sin().sum() + to_dense(latents).sum(-1).pow(2).mul(0.1).sum()).backward()
    gradients = {f"gradient of {name}": leaf.grad for name, leaf in leaves.items() if name not in fixed}
    return {"latents": to_dense(latents).detach(), "x_hat": x_hat.detach(), **gradients}


def compare(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Compares each with a tolerance relative to its largest value: sums of terms of that size may cancel to anything."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.abs().max().item() if value.numel() else 1.0
        error = (got[name].double() - value).abs().max().item() if value.numel() else 0.0
        assert error <= tolerance * max(scale, 1.0), f"{name}: {error:.1e} of {scale:.1e}"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("encode", ENCODERS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("coarse", [False, True])
def test_form_equals_reference(backend, encode, shape, coarse, monkeypatch):
    monkeypatch.setattr(scan, "bfloat16_is_fast", lambda _: coarse)
    n, d, f, k = shape
    given = tensors(n, d, f)
    expected = run("reference", encode, torch.float64, given, k)
    compare(run(backend, encode, torch.float64, given, k), expected, 1e-12)
    # float32 rounds at 6e-8 of each term; a few hundred terms add up
    compare(run(backend, encode, torch.float32, given, k), expected, 2e-5)


@pytest.mark.parametrize("fixed", [("x",), ("x", "center"), ("W_enc", "b_enc"), ("W_dec",), ("center", "W_dec")])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_do_not_depend_on_which_others_are_wanted(backend, fixed):
    given = tensors(50, 12, 120)
    expected = run("reference", "topk_encode", torch.float64, given, 6, fixed)
    compare(run(backend, "topk_encode", torch.float64, given, 6, fixed), expected, 1e-12)


@pytest.mark.parametrize("encode", ENCODERS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_tensors_are_computed_with_in_float32(backend, encode, dtype):
    given = {name: t.to(dtype).float() for name, t in tensors(40, 16, 200).items()}
    expected = run("reference", encode, torch.float64, given, 5)
    got = run(backend, encode, dtype, given, 5)
    assert got["latents"].dtype == got["x_hat"].dtype == torch.float32
    assert got["gradient of W_enc"].dtype == dtype
    rounding = torch.finfo(dtype).eps
    compare({n: got[n] for n in ("latents", "x_hat")}, {n: expected[n] for n in ("latents", "x_hat")}, 2e-5)
    compare(got, expected, rounding)  # gradients are rounded to the weights' type, once


@pytest.mark.parametrize("encode", ENCODERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_fewer_positive_than_k_leaves_zeros_without_gradient(backend, encode):
    x, W = torch.ones(4, 3), -torch.ones(50, 3)
    W[7] = 1.0
    W.requires_grad_()
    with ops.use_backend(backend):
        latents = getattr(ops, encode)(x, W, torch.zeros(50), 3)
        latents.values.sum().backward()
    assert to_dense(latents)[:, 7].tolist() == [3.0] * 4 and to_dense(latents).sum() == 12
    assert (W.grad.abs().sum(1) > 0).nonzero().tolist() == [[7]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_keep_equal_values(backend):
    x, W = torch.ones(4, 3), torch.ones(50, 3)
    with ops.use_backend(backend):
        latents = ops.topk_encode(x, W, torch.zeros(50), 5)
        together = ops.batch_topk_encode(x, W, torch.zeros(50), 5)
    assert (latents.values == 3).all() and (together.values == 3).all()
    assert all(len(set(row)) == 5 for row in latents.indices.tolist())
    assert together.values.shape == (20,) and (to_dense(together) > 0).sum() == 20


@pytest.mark.parametrize("encode", ENCODERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_of_zeros_keep_only_what_the_bias_makes_positive(backend, encode):
    b = torch.full((60,), -1.0)
    b[[3, 50]] = torch.tensor([0.25, 0.5])
    with ops.use_backend(backend):
        latents = getattr(ops, encode)(torch.zeros(5, 4), torch.randn(60, 4), b, 4)
    expected = torch.zeros(5, 60)
    expected[:, 3], expected[:, 50] = 0.25, 0.5
    assert torch.equal(to_dense(latents), expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("encode", ENCODERS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("coarse", [False, True])
def test_a_token_that_is_not_finite_does_not_change_the_others(backend, encode, bad, coarse, monkeypatch):
    monkeypatch.setattr(scan, "bfloat16_is_fast", lambda _: coarse)
    given = tensors(20, 8, 300)
    x, W, b = given["x"].clone(), given["W_enc"], given["b_enc"]
    others = torch.arange(20) != 7
    x[7, 3] = bad
    with ops.use_backend(backend):
        latents = getattr(ops, encode)(x, W, b, 4)
        if encode == "topk_encode":
            alone = to_dense(ops.topk_encode(x[others], W, b, 4))  # a product of another shape
            torch.testing.assert_close(to_dense(latents)[others], alone)
        elif bad != 3e38:  # which is finite, and may take all places
            assert to_dense(latents)[7].count_nonzero() == 0 and latents.values.isfinite().all()
            assert (to_dense(latents) != 0).sum() == 80


@pytest.mark.parametrize("kind", ["uneven", "one direction", "large mean", "bias"])
def test_coarse_selection_equals_that_of_float64(kind, monkeypatch):
    """On activations as real ones can be, whatever this machine is fast at."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 64, generator=generator)
    W = torch.nn.functional.normalize(torch.randn(2048, 64, generator=generator), dim=-1)
    b = 0.01 * torch.randn(2048, generator=generator)
    if kind == "uneven":
        x = x * torch.logspace(0, -1.5, 64) * torch.logspace(-2, 2, 512).unsqueeze(1)
    elif kind == "one direction":
        x[:, 5] += 300 * torch.rand(512, generator=generator)  # as a massive activation
    elif kind == "large mean":
        x = x + 20 * torch.randn(64, generator=generator)
    else:
        b = 10 * b + 1000.0
    exact = (x.double() @ W.double().T + b.double()).topk(32).indices.sort(-1).values
    monkeypatch.setattr(scan, "bfloat16_is_fast", lambda _: True)
    with ops.use_backend("sparse"):
        coarse = ops.topk_encode(x, W, b, 32).indices.sort(-1).values
    with ops.use_backend("reference"):
        plain = ops.topk_encode(x, W, b, 32).indices.sort(-1).values
    # float32 itself may order two latents otherwise that differ by its rounding
    assert (coarse != exact).any(-1).sum() <= (plain != exact).any(-1).sum() + 1
    assert (coarse != exact).any(-1).sum() < 26


@pytest.mark.parametrize("encode", ENCODERS)
def test_selection_in_bfloat16_survives_random_cases(encode, monkeypatch):
    """Scales, biases and numbers of latents at random: what is kept has the values that float64 keeps."""
    monkeypatch.setattr(scan, "bfloat16_is_fast", lambda _: True)
    generator = torch.Generator().manual_seed(0)
    for case in range(40):
        f, k, n = (
            int(torch.randint(low, high, (1,), generator=generator)) for low, high in ((70, 900), (1, 9), (1, 40))
        )
        scale, offset, spread = (10 ** float(torch.empty(1).uniform_(-2, 2, generator=generator)) for _ in range(3))
        x = scale * torch.randn(n, 6, generator=generator) + offset * torch.randn(6, generator=generator)
        W = torch.randn(f, 6, generator=generator)
        b = spread * torch.randn(f, generator=generator) - (case % 4) * scale
        with ops.use_backend("sparse"):
            got = getattr(ops, encode)(x, W, b, k)
        with ops.use_backend("reference"):
            expected = getattr(ops, encode)(x.double(), W.double(), b.double(), k)
        size = float(expected.values.abs().amax()) if expected.values.numel() else 1.0
        a, e = (to_dense(latents).double().sort(-1).values for latents in (got, expected))
        assert (a - e).abs().amax() <= 1e-5 * max(size, scale, spread), f"case {case}: {f} latents, k {k}, {n} tokens"


def test_batch_of_tokens_of_very_different_size_is_selected_exactly(monkeypatch):
    """The bound is guessed from a sample of the tokens: here from one that tells nothing about the others."""
    monkeypatch.setattr(scan, "chunk_rows", lambda *_: 8)
    given = tensors(64, 16, 1024)
    W, b = given["W_enc"], given["b_enc"]
    for coarse in (False, True):
        monkeypatch.setattr(scan, "bfloat16_is_fast", lambda _, coarse=coarse: coarse)
        for large in (slice(3, None, 8), slice(0, None, 8)):  # another chunk takes nearly all places; the sample does
            x = given["x"] * 0.01
            x[large] = 30 * given["x"][large]
            with ops.use_backend("reference"):
                expected = to_dense(ops.batch_topk_encode(x.double(), W.double(), b.double(), 5))
            with ops.use_backend("sparse"):
                got = to_dense(ops.batch_topk_encode(x, W, b, 5))
            torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-4)


def test_ragged_support_decodes_as_its_dense_form():
    indices, offsets = torch.tensor([4, 1, 1, 0, 5]), torch.tensor([0, 2, 2, 5])
    values = torch.randn(5, dtype=torch.float64, requires_grad=True)
    W = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    latents = SparseLatents(values, Support(indices, 6, offsets))

    def decode(values, W):
        return ops.sparse_decode(SparseLatents(values, latents.support), W)

    torch.testing.assert_close(decode(values, W), to_dense(latents) @ W)
    assert torch.autograd.gradcheck(decode, (values, W))


def test_sums_are_the_same_for_tables_that_are_read_often(monkeypatch):
    support = Support(torch.stack([torch.randperm(40)[:30] for _ in range(50)]), 40)
    values, x, W = torch.randn(50, 30), torch.randn(50, 200), torch.randn(40, 200)
    whole = pairs.sum_over_kept(values, support, W), pairs.sum_over_tokens(values, support, x)
    monkeypatch.setattr(pairs, "_REUSE", 1)
    parts = pairs.sum_over_kept(values, support, W), pairs.sum_over_tokens(values, support, x)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("n_tokens", [1, 8192, 2**24])
@pytest.mark.parametrize("width", [8, 2**16, 2**20, 2**26])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_no_chunk_has_more_elements_than_32_bits_count(n_tokens, width, itemsize):
    """By arithmetic: tokens * latents passes 2^31, a chunk's elements never do, unless one token's alone would."""
    rows = scan.chunk_rows(n_tokens, width, itemsize)
    assert 1 <= rows <= max(n_tokens, 1)
    assert rows * width < 2**31


def test_indices_are_64_bit():
    latents = ops.topk_encode(torch.randn(4, 3), torch.randn(50, 3), torch.zeros(50), 2)
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


@pytest.mark.parametrize("encode", ENCODERS)
def test_gradient_check_of_the_reference(encode):
    arguments = [t.double().requires_grad_() for t in tensors(5, 4, 12).values()]

    def function(x, center, W_enc, b_enc, W_dec):
        return ops.sparse_decode(getattr(ops, encode)(x, W_enc, b_enc, 3, center=center), W_dec)

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


def test_status_says_why_a_backend_is_not_used():
    there, elsewhere = ops.status(torch.device("cpu")), ops.status(torch.device("mps"))
    assert there["sparse_decode"] == "sparse"
    assert any(words in there["backend sparse"] for words in ("ranked again in float32", "are not faster"))
    assert elsewhere["sparse_decode"] == "reference" and elsewhere["backend sparse"].startswith("not used: made for")
