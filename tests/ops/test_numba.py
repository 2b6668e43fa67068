"""Compiled loops equal the reference in values and every gradient, on one thread and on several."""

import functools
import subprocess
import sys
import threading

import pytest
import torch

from dictionary_learning import ops
from dictionary_learning.latents import Support, to_dense
from dictionary_learning.ops import _numba, _pairs as plain, _row_updates, _scan as scan
from dictionary_learning.trainers._row_adam import RowAdam
from tests.ops.test_ops import ENCODERS, SHAPES, compare, encode, run, tensors
from tests.tiny import DEVICE

pytestmark = [
    pytest.mark.skipif(DEVICE != "cpu", reason="loops for the CPU"),
    pytest.mark.skipif(_numba.problem() is not None, reason=str(_numba.problem())),
]


@pytest.fixture(autouse=True)
def however_small(monkeypatch):
    """Compiles also where the work is too small to be worth it."""
    monkeypatch.setattr(_numba, "_LEAST_PRODUCT", 0)
    monkeypatch.setattr(_numba, "_LEAST_SUM", 0)
    monkeypatch.setattr(_row_updates, "_LEAST_COMPILED", 0)


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [*SHAPES, (200, 16, 1500, 12)])
@pytest.mark.parametrize("operation", ENCODERS)
@pytest.mark.parametrize("coarse", [False, True])
def test_form_equals_reference(operation, shape, coarse, threads, monkeypatch):
    monkeypatch.setattr(scan, "bfloat16_is_fast", lambda _: coarse)
    n, d, f, k = shape
    # seeds for which no two latents at the border are as close as float32 rounds
    torch.manual_seed(3)
    given = tensors(n, d, f)
    expected = run("reference", operation, torch.float64, given, k)
    compare(run("numba", operation, torch.float32, given, k), expected, 2e-5)


@pytest.mark.parametrize("operation", ENCODERS)
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("tile", [256, 300, 5000])
def test_tiles_of_any_width_find_the_same(operation, coarse, tile, monkeypatch):
    from dictionary_learning.ops._numba import _search

    monkeypatch.setattr(scan, "bfloat16_is_fast", lambda _: coarse)
    monkeypatch.setattr(_search, "_TILE_BYTES", 1)
    monkeypatch.setattr(_search, "_LEAST_LATENTS", tile)
    given = tensors(70, 24, 2001)
    expected = run("reference", operation, torch.float64, given, 9)
    compare(run("numba", operation, torch.float32, given, 9), expected, 2e-5)


@pytest.mark.parametrize("operation", ENCODERS)
@pytest.mark.parametrize("coarse", [False, True])
def test_random_cases_keep_what_float64_keeps(operation, coarse, monkeypatch):
    monkeypatch.setattr(scan, "bfloat16_is_fast", lambda _: coarse)
    generator = torch.Generator().manual_seed(0)
    for case in range(60):
        f, k, n = (int(torch.randint(*r, (1,), generator=generator)) for r in ((70, 900), (1, 9), (1, 40)))
        scale, offset, spread = (10 ** float(torch.empty(1).uniform_(-2, 2, generator=generator)) for _ in range(3))
        x = scale * torch.randn(n, 6, generator=generator) + offset * torch.randn(6, generator=generator)
        W, b = torch.randn(f, 6, generator=generator), spread * torch.randn(f, generator=generator) - (case % 4) * scale
        with ops.use_backend("numba"):
            got = encode(operation, x, W, b, k)
        with ops.use_backend("reference"):
            expected = encode(operation, x.double(), W.double(), b.double(), k)
        size = float(expected.values.abs().amax()) if expected.values.numel() else 1.0
        a, e = (to_dense(latents).double().sort(-1).values for latents in (got, expected))
        assert (a - e).abs().amax() <= 1e-5 * max(size, scale, spread), f"case {case}: {f} latents, k {k}, {n} tokens"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("coarse", [False, True])
def test_what_is_not_finite_is_as_in_the_reference(bad, coarse, monkeypatch):
    monkeypatch.setattr(scan, "bfloat16_is_fast", lambda _: coarse)
    given = tensors(20, 8, 300)
    x, W, b = given["x"].clone(), given["W_enc"].clone(), given["b_enc"]
    others = torch.arange(20) != 7
    x[7, 3] = bad
    with ops.use_backend("numba"):
        alone = to_dense(encode("top_k", x[others], W, b, 4))
        torch.testing.assert_close(to_dense(encode("top_k", x, W, b, 4))[others], alone)
        if bad != 3e38:
            together = encode("batch_top_k", x, W, b, 4)
            assert to_dense(together)[7].count_nonzero() == 0 and together.values.isfinite().all()
            assert (to_dense(together) != 0).sum() == 80
        W[5] = bad
        broken = encode("top_k", x[others], W, b, 4)
    with ops.use_backend("reference"):
        expected = encode("top_k", x[others], W, b, 4)
    torch.testing.assert_close(broken.values.sort(-1).values, expected.values.sort(-1).values, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 500])
def test_blocks_are_compared_and_searched_as_number_by_number(dtype, n):
    from dictionary_learning.ops._numba import _bits

    whole = torch.randint(-300, 300, (n + 7,), generator=torch.Generator().manual_seed(n)).to(dtype)
    whole[3:-4] *= torch.iinfo(dtype).max // 300
    row = whole[3:-4]  # what lies beside it is not read
    for bound in [*row[:5].tolist(), 0, torch.iinfo(dtype).max, torch.iinfo(dtype).min]:
        assert _bits.n_above(row.numpy(), bound) == int((row > bound).sum())
        found = _bits.above(row.numpy(), 0, bound)
        assert [j for j in range(_bits.BLOCK) if found >> j & 1] == (
            row[: _bits.BLOCK] > bound
        ).nonzero().flatten().tolist()
    for k in {1, n // 3 + 1, n}:
        exact = max(int(row.topk(k).values[-1]), 0)
        assert _bits.kth_largest(row.numpy(), k, 0, -1) == exact
        near = _bits.kth_largest(row.numpy(), k, 4, k + 2)
        assert near <= exact and (near == exact >> 4 << 4 or k <= (row >= near).sum() <= k + 2)


def test_ties_and_few_positive_ones_give_distinct_latents():
    W = -torch.ones(50, 3)
    W[7] = W[9] = 1.0
    with ops.use_backend("numba"):
        few = encode("top_k", torch.ones(4, 3), W, torch.zeros(50), 5)
        ties = encode("top_k", torch.ones(4, 3), torch.ones(50, 3), torch.zeros(50), 5)
        together = encode("batch_top_k", torch.ones(4, 3), torch.ones(50, 3), torch.zeros(50), 5)
    assert all(len(set(row)) == 5 for latents in (few, ties) for row in latents.indices.tolist())
    assert few.values.sum(1).tolist() == [6.0] * 4 and (ties.values == 3).all()
    assert together.values.shape == (20,) and (to_dense(together) > 0).sum() == 20


def test_a_table_that_is_too_small_costs_time_only(monkeypatch):
    """In bfloat16 hundreds of equal numbers are within the rounding error of the k-th."""
    monkeypatch.setattr(scan, "bfloat16_is_fast", lambda _: True)
    W = torch.ones(2000, 8) + 1e-4 * torch.rand(2000, 8)
    x = torch.rand(6, 8)
    with ops.use_backend("numba"):
        got = encode("top_k", x, W, torch.zeros(2000), 6)
    expected = (x.double() @ W.double().T).topk(6).values
    torch.testing.assert_close(got.values.double().sort(descending=True).values, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dim", [1, 5, 64])
def test_sums_and_dots_of_ragged_pairs(dim, threads):
    counts = torch.tensor([0, 3, 1, 40, 0, 7, 2])
    latents = torch.cat([torch.randperm(90)[:n] for n in counts.tolist()])
    support = Support(latents, 90, torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]))
    values, x, W = torch.randn(len(latents)), torch.randn(7, dim), torch.randn(90, dim)
    backend = _numba.NumbaBackend()
    torch.testing.assert_close(backend.pair_dots(x, W, support), plain.pair_dots(x, W, support))
    torch.testing.assert_close(backend.sum_over_tokens(values, support, x), plain.sum_over_tokens(values, support, x))


@pytest.mark.parametrize("shape", [(40, 12), (3, 2048), (7,), (5, 4, 3)])
@pytest.mark.parametrize("unit_rows", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adam_makes_the_steps_of_pytorch(shape, unit_rows, dtype, monkeypatch):
    if unit_rows and len(shape) != 2:
        return
    start = (
        torch.nn.functional.normalize(torch.randn(shape).flatten(1), dim=1).view(shape)
        if unit_rows
        else torch.randn(shape)
    )
    gradients = [torch.randn(shape) for _ in range(5)]
    gradients[2][0] = torch.nan
    found = []
    for backend in ("numba", "sparse"):
        weight = torch.nn.Parameter(start.clone().to(dtype))
        optimizer = RowAdam([{"params": [weight], "unit_rows": unit_rows}], lr=0.1, max_grad_norm=1.5)
        with ops.use_backend(backend):
            for gradient in gradients:
                weight.grad = gradient.clone().to(dtype)
                optimizer.step()
        state = optimizer.state[weight]
        found.append(
            [weight.detach().float(), state["exp_avg"], state["exp_avg_sq"], state["step"], state["n_skipped"]]
        )
    for ours, plain_ones in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain_ones, rtol=2e-5, atol=2e-6 if dtype == torch.float32 else 1e-2)


def test_a_numba_that_cannot_be_imported_is_done_without(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in [name for name in sys.modules if name.startswith(f"{_numba.__name__}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(_numba, "problem", _numba.problem.__wrapped__)
    given = tensors(30, 8, 200)
    expected = run("sparse", "top_k", torch.float32, given, 5)
    compare(run("numba", "top_k", torch.float32, given, 5), {n: t.double() for n, t in expected.items()}, 1e-6)
    assert "cannot be used" in ops.status(torch.device("cpu"))["backend numba"]
    assert "Loops are not compiled" in caplog.text


def test_numba_is_imported_by_large_work_only():
    script = """
import sys, torch
from dictionary_learning import ops
from dictionary_learning.dictionaries import AutoEncoderTopK
AutoEncoderTopK(8, 64, 3)(torch.randn(5, 8)).sum().backward()
assert ops.status(torch.device("mps"))
assert "numba" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("team", ["of PyTorch", "of our own"])
def test_calls_run_beside_each_other_and_an_error_is_raised_after_all_have_ended(team, monkeypatch):
    from dictionary_learning.ops._numba import _threads

    if team == "of our own":
        monkeypatch.setattr(_threads, "_openmp", lambda: None)
    elif _threads._openmp() is None:
        pytest.skip("PyTorch has not GCC's OpenMP here")
    done, met = [], threading.Barrier(2, timeout=60)

    def call(number):
        met.wait()  # only where two run at once
        if number == 1:
            raise KeyboardInterrupt("1")
        done.append(number)

    _threads.run_beside([functools.partial(call, number) for number in (0, 2)])
    assert sorted(done) == [0, 2]
    with pytest.raises(KeyboardInterrupt, match="1"):
        _threads.run_beside([functools.partial(call, number) for number in (1, 3)])
    assert sorted(done) == [0, 2, 3]


def test_each_call_is_made_once_however_threads_take_turns():
    from dictionary_learning.ops._numba import _threads

    before, made = sys.getswitchinterval(), []
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(300):
            _threads.run_beside([functools.partial(made.append, number) for number in range(4)])
    finally:
        sys.setswitchinterval(before)
    assert sorted(made) == sorted([0, 1, 2, 3] * 300)
