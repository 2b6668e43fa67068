"""Every backend equals the reference in float64: values and every gradient."""

import pytest
import torch

from dictionary_learning import ops
from dictionary_learning.errors import UnknownNameError
from dictionary_learning.latents import Latents, SparseLatents, Support, to_dense
from dictionary_learning.ops import _joint as joint, _pairs as pairs, _scan as scan

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
"""Tokens, width, latents, kept: widths that are no multiple of 8, k = 1, k = all, no token at all, many and few groups."""
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
    """Compares each with a tolerance relative to its largest value: sums of terms of that size may cancel to anything."""
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
        coarse = encode("top_k", x, W, b, 32).indices.sort(-1).values
    with ops.use_backend("reference"):
        plain = encode("top_k", x, W, b, 32).indices.sort(-1).values
    # float32 itself may order two latents otherwise that differ by its rounding
    assert (coarse != exact).any(-1).sum() <= (plain != exact).any(-1).sum() + 1
    assert (coarse != exact).any(-1).sum() < 26


@pytest.mark.parametrize("operation", ENCODERS)
def test_selection_in_bfloat16_survives_random_cases(operation, monkeypatch):
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
            got = encode(operation, x, W, b, k)
        with ops.use_backend("reference"):
            expected = encode(operation, x.double(), W.double(), b.double(), k)
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
                expected = to_dense(encode("batch_top_k", x.double(), W.double(), b.double(), 5))
            with ops.use_backend("sparse"):
                got = to_dense(encode("batch_top_k", x, W, b, 5))
            torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-4)


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


@pytest.mark.parametrize("n_tokens", [1, 8192, 2**24])
@pytest.mark.parametrize("width", [8, 2**16, 2**20, 2**26])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_no_chunk_has_more_elements_than_32_bits_count(n_tokens, width, itemsize):
    """By arithmetic: tokens * latents passes 2^31, a chunk's elements never do, unless one token's alone would."""
    rows = scan.chunk_rows(n_tokens, width, itemsize)
    assert 1 <= rows <= max(n_tokens, 1)
    assert rows * width < 2**31


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


def test_backend_is_chosen_by_name_and_by_variable(monkeypatch):
    """At any time, also for an encoder whose backend was asked for before."""
    encoder = ops.Encoder(torch.ones(9, 2), torch.zeros(9))
    chosen = encoder.backend
    assert chosen is encoder.backend and not isinstance(chosen, ops.ReferenceBackend)
    with ops.use_backend("reference"):
        assert isinstance(encoder.backend, ops.ReferenceBackend)
        with ops.use_backend(None):
            assert encoder.backend is chosen
    monkeypatch.setenv("DICTIONARY_LEARNING_BACKEND", "reference")
    assert isinstance(encoder.backend, ops.ReferenceBackend)
    assert ops.status(torch.device("cpu"))["encode and decode"].startswith("reference, as forced by")
    monkeypatch.setenv("DICTIONARY_LEARNING_BACKEND", "fast")
    with pytest.raises(UnknownNameError, match="Unknown backend 'fast'"):
        encode("top_k", torch.ones(1, 2), *encoder[:2], 1)
    with pytest.raises(UnknownNameError), ops.use_backend("nothing"):
        pass


def test_status_says_why_a_backend_is_not_used():
    there, elsewhere = ops.status(torch.device("cpu")), ops.status(torch.device("mps"))
    assert there["encode and decode"] == "sparse"
    assert any(words in there["backend sparse"] for words in ("ranked again in float32", "are not faster"))
    assert elsewhere["encode and decode"] == "reference"
    assert elsewhere["backend sparse"].startswith("not used: made for")


def test_a_backend_of_a_user_is_used_where_it_supports_the_device(monkeypatch):
    monkeypatch.setattr(ops._backend, "_backends", dict(ops._backend._backends))
    seen = []

    class Watching(ops.ReferenceBackend):
        def supports(self, device_type, dtype):
            return device_type == "cpu" and dtype != torch.float64

        def top_k(self, x, encoder, k):
            seen.append(k)
            return super().top_k(x, encoder, k)

    ops.register_backend("watching", Watching())
    from dictionary_learning.dictionaries import AutoEncoderTopK

    dictionary = AutoEncoderTopK(6, 40, 3)
    x_hat = dictionary(torch.randn(5, 6))
    assert seen == [3] and ops.status(torch.device("cpu"))["encode and decode"] == "watching"
    dictionary.double()(torch.randn(5, 6).double())
    with ops.use_backend("sparse"):
        dictionary.float()(torch.randn(5, 6))
    assert seen == [3] and x_hat.shape == (5, 6)
    ops._backend._choose_backend.cache_clear()


def test_a_shared_product_is_used_for_its_own_activations_and_weights_only(monkeypatch):
    """Not for other tensors of the same shape, not even at the same address."""
    monkeypatch.setattr(joint, "is_worthwhile", lambda x, encoders: True)
    x = torch.randn(9, 12)
    x[3, 2] = torch.nan
    encoders = [ops.Encoder(torch.randn(f, 12), torch.randn(f), torch.randn(12)) for f in (30, 40)]
    W = encoders[1].W
    with joint.shared_product(x, encoders):
        given, n_replaced = joint.replace_nonfinite(x)
        assert n_replaced == 1 and joint.replace_nonfinite(x)[0] is given
        expected = encoders[1].centered(given) @ W.T + encoders[1].b
        product = joint.product_for(given, W)
        torch.testing.assert_close(product.float(), expected, rtol=0.05, atol=0.1)
        others = (x, given.clone(), given.view(9, 12), joint.replace_nonfinite(x.clone())[0], given[:4])
        assert all(joint.product_for(other, W) is None for other in others)
        assert joint.product_for(given, W.detach()) is None
    assert joint.product_for(given, W) is None
