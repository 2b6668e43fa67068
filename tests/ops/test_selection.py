"""The scan and the selection: what is kept is what float64 keeps, whatever the activations."""

import pytest
import torch

from dictionary_learning import ops
from dictionary_learning.latents import to_dense
from dictionary_learning.ops import _scan as scan
from tests.ops.test_ops import ENCODERS, encode, tensors
from tests.tiny import DEVICE


@pytest.mark.parametrize("kind", ["uneven", "one direction", "large mean", "bias"])
def test_coarse_selection_equals_that_of_float64(kind, monkeypatch):
    """On activations as real ones can be, whatever this machine is fast at."""
    generator = torch.Generator(DEVICE).manual_seed(0)
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
    generator = torch.Generator(DEVICE).manual_seed(0)
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


@pytest.mark.skipif(DEVICE != "cpu", reason="of the scan on a CPU")
@pytest.mark.parametrize("backend", [name for name in ("sparse", "numba") if name in ops.available()])
@pytest.mark.parametrize("operation", ENCODERS)
@pytest.mark.parametrize("shift", [0.0, 0.02, -1.0])
def test_what_is_kept_near_zero_is_that_of_full_precision(operation, backend, shift, monkeypatch):
    """The smallest kept values are near 0, on either side of which bfloat16 may see them; or fewer are positive than
    are kept."""
    monkeypatch.setattr(scan, "bfloat16_is_fast", lambda _: True)
    generator = torch.Generator(DEVICE).manual_seed(0)
    n, f = 600, 2048
    x, W = torch.randn(n, 32, generator=generator), torch.randn(f, 32, generator=generator)
    b = torch.full((f,), shift)
    k = f // 2 if shift < 0.02 else f // 2 - 12
    with ops.use_backend("reference"):
        expected = encode(operation, x.double(), W.double(), b.double(), k)
    with ops.use_backend(backend):
        got = encode(operation, x, W, b, k)
    torch.testing.assert_close(to_dense(got).double(), to_dense(expected), rtol=0, atol=2e-5)


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


@pytest.mark.parametrize("n_tokens", [1, 8192, 2**24])
@pytest.mark.parametrize("width", [8, 2**16, 2**20, 2**26])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_no_chunk_has_more_elements_than_32_bits_count(n_tokens, width, itemsize):
    """By arithmetic: tokens * latents passes 2^31, a chunk's elements never do, unless one token's alone would."""
    rows = scan.chunk_rows(n_tokens, width, itemsize)
    assert 1 <= rows <= max(n_tokens, 1)
    assert rows * width < 2**31
