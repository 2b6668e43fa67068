"""Triton's kernels: their values by its interpreter, on the CPU, and that they compile for GPUs."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

from dictionary_learning import ops
from dictionary_learning.latents import SparseLatents, Support, to_dense
from dictionary_learning.ops import _joint as joint
from dictionary_learning.ops._triton import TRITON, adam, candidates, certainty, pairs, selection, usable
from dictionary_learning.trainers import TRAINERS
from dictionary_learning.trainers._row_adam import RowAdam
from tests.ops.test_ops import compare, encode, run, tensors
from tests.tiny import DEVICE, Planted

SHAPES = [(6, 5, 300, 1), (17, 12, 643, 5), (9, 33, 2050, 16), (1, 1, 256, 2), (0, 8, 512, 3)]
"""Tokens, width, latents, kept: at most 1 latent of 128 is kept, as the kernels are made for."""


@pytest.fixture(autouse=True)
def interpreted():
    assert DEVICE != "cpu" or os.environ["TRITON_INTERPRET"] == "1"
    with ops.use_backend("triton"):
        yield


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("operation", ["top_k", "batch_top_k"])
@pytest.mark.parametrize("coarse", [False, True])
def test_form_equals_reference(operation, shape, coarse, monkeypatch):
    monkeypatch.setattr(selection, "bfloat16_is_fast", lambda _: coarse)
    n, d, f, k = shape
    given = tensors(n, d, f)
    expected = run("reference", operation, torch.float64, given, k)
    compare(run("triton", operation, torch.float32, given, k), expected, 2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_tensors_are_computed_with_in_float32(dtype):
    given = {name: t.to(dtype).float() for name, t in tensors(7, 16, 300).items()}
    expected = run("reference", "top_k", torch.float64, given, 2)
    got = run("triton", "top_k", dtype, given, 2)
    assert got["x_hat"].dtype == torch.float32 and got["gradient of W_dec"].dtype == dtype
    compare(got, expected, torch.finfo(dtype).eps)


def support_of(kind: str) -> Support:
    if kind == "one latent on every token":
        columns = torch.arange(1, 6).repeat(150, 1)
        columns[:, 1:] += 4 * torch.arange(150).unsqueeze(1) % 30
        return Support(torch.cat([torch.zeros(150, 1, dtype=torch.long), columns], 1), 50)
    if kind == "ragged":
        return Support(torch.tensor([4, 1, 1, 0, 5]), 6, torch.tensor([0, 2, 2, 5]))
    if kind == "whole tiles":  # a stretch that ends where a tile does, and one that is a tile
        indices = torch.tensor([3] * 64 + [7] * 64 + [8] * 5)
        return Support(indices.unsqueeze(1), 9)
    return Support(torch.zeros(0, 3, dtype=torch.long), 9)


@pytest.mark.parametrize("kind", ["one latent on every token", "ragged", "whole tiles", "empty"])
@pytest.mark.parametrize("dim", [1, 20])
def test_sums_and_dots_over_pairs(kind, dim):
    support = support_of(kind)
    values = torch.randn(support.indices.shape)
    x, W = torch.randn(support.n_tokens, dim), torch.randn(support.dict_size, dim)
    dense = to_dense(SparseLatents(values, support)).double()
    torch.testing.assert_close(TRITON.sum_over_kept(values, support, W).double(), dense @ W.double(), **close())
    by_latent = TRITON.sum_over_tokens(values, support, x)
    torch.testing.assert_close(by_latent.double(), dense.T @ x.double(), **close())
    torch.testing.assert_close(TRITON.totals(values, support).double(), dense.sum(0), **close())
    products = TRITON.pair_dots(x, W, support)
    expected = (x[support.tokens] * W[support.latents]).sum(-1).view(support.indices.shape)
    torch.testing.assert_close(products, expected, **close())
    assert torch.equal(by_latent, TRITON.sum_over_tokens(values, support, x))
    fires = torch.zeros(support.dict_size).index_add_(0, support.latents, torch.ones(support.indices.numel())) > 0
    assert (by_latent[~fires] == 0).all()


def close() -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-4}  # float32 sums of at most 150 terms of size 1


@pytest.mark.parametrize("coarse", [False, True])
def test_tokens_that_are_not_finite_do_not_change_the_others(coarse, monkeypatch):
    monkeypatch.setattr(selection, "bfloat16_is_fast", lambda _: coarse)
    given = tensors(12, 8, 520)
    x, W, b = given["x"].clone(), given["W_enc"], given["b_enc"]
    x[3, 1], x[7] = torch.nan, 0.0
    others = torch.arange(12) != 3
    kept = encode("top_k", x, W, b, 4)
    torch.testing.assert_close(to_dense(kept)[others], to_dense(encode("top_k", x[others], W, b, 4)), **close())
    assert all(len(set(row)) == 4 for row in kept.indices[others].tolist())
    together = encode("batch_top_k", x, W, b, 4)
    assert together.values.isfinite().all() and (to_dense(together)[3] == 0).all()
    assert (together.values > 0).sum() == 48


@pytest.mark.parametrize("coarse", [False, True])
def test_batch_in_which_one_token_takes_nearly_all_places(coarse, monkeypatch):
    monkeypatch.setattr(selection, "bfloat16_is_fast", lambda _: coarse)
    given = tensors(20, 8, 600)
    x, W, b = given["x"], given["W_enc"], given["b_enc"]
    x[4] *= 50
    kept = selection.batch_top_k(x, W, b, 80)
    expected = (x @ W.T + b).relu().flatten().topk(80)
    assert kept[1] == 0
    dense = to_dense(SparseLatents(*kept[0])).flatten()
    torch.testing.assert_close(dense[expected.indices], expected.values, **close())
    assert (dense > 0).sum() == 80


@pytest.mark.parametrize("operation", ["top_k", "batch_top_k"])
def test_one_product_for_several_dictionaries_keeps_what_their_own_would(operation, monkeypatch):
    monkeypatch.setattr(selection, "bfloat16_is_fast", lambda _: True)
    monkeypatch.setattr(joint, "bfloat16_is_fast", lambda _: True)
    monkeypatch.setattr(joint, "is_worthwhile", lambda x, encoders: True)
    given = [tensors(9, 12, f) for f in (300, 520, 290)]
    x = given[0]["x"]
    encoders = [ops.Encoder(g["W_enc"], g["b_enc"], g["center"]) for g in given]
    used = []
    maxima = candidates.group_maxima
    monkeypatch.setattr(
        candidates, "group_maxima", lambda pre, group: used.append(pre.data_ptr()) or maxima(pre, group)
    )
    with joint.shared_product(x, encoders):
        products = [joint.product_for(x, encoder.W).data_ptr() for encoder in encoders]
        together = [to_dense(getattr(e.backend, operation)(x, e, 2)) for e in encoders]
    assert used == products
    apart = [to_dense(getattr(e.backend, operation)(x, e, 2)) for e in encoders]
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, **close())


def test_ties_keep_as_many_as_wanted():
    x, W = torch.ones(3, 2), torch.ones(300, 2)
    kept, together = encode("top_k", x, W, torch.zeros(300), 2), encode("batch_top_k", x, W, torch.zeros(300), 2)
    assert (kept.values == 2).all() and all(len(set(row)) == 2 for row in kept.indices.tolist())
    assert together.values.tolist() == [2.0] * 6


def test_nothing_positive_keeps_zeros():
    x, W = torch.ones(3, 2), -torch.ones(300, 2)
    for operation in ("top_k", "batch_top_k"):
        kept = encode(operation, x, W, torch.zeros(300), 2)
        assert (kept.values == 0).all() and kept.values.numel() == 6


@pytest.mark.parametrize("coarse", [False, True])
def test_too_few_positive_are_made_up_of_pairs_that_are_zero_and_differ(coarse, monkeypatch):
    monkeypatch.setattr(selection, "bfloat16_is_fast", lambda _: coarse)
    x, W, b = torch.ones(9, 3), -torch.ones(520, 3), -torch.zeros(520)
    W[7] = 1.0
    x[4] = 0.0
    (values, support), uncertain = selection.top_k(x, W, b, 3)
    assert uncertain == 0
    assert all(len(set(row)) == 3 and min(row) >= 0 and max(row) < 520 for row in support.indices.tolist())
    assert values.sum(1).tolist() == [3.0] * 4 + [0.0] + [3.0] * 4
    (values, support), uncertain = selection.batch_top_k(x, W, b, 27)
    assert uncertain == 0 and values.sum() == 24 and len(values) == 27
    assert len(set(zip(support.tokens.tolist(), support.latents.tolist(), strict=True))) == 27
    assert support.offsets.diff().max() <= 4  # no token is made to bear all


@pytest.mark.parametrize("coarse", [False, True])
def test_infinite_tokens_take_no_places_of_the_batch(coarse, monkeypatch):
    monkeypatch.setattr(selection, "bfloat16_is_fast", lambda _: coarse)
    given = tensors(7, 9, 300)
    x, W, b = given["x"], given["W_enc"], given["b_enc"]
    x[2, 0] = torch.inf
    (values, support), uncertain = selection.batch_top_k(x, W, b, 21)
    expected = (x[x.isfinite().all(1)] @ W.T + b).flatten().topk(21).values
    torch.testing.assert_close(values.sort(descending=True).values, expected, **close())
    assert uncertain == 0 and not (support.tokens == 2).any()


def test_shares_add_up_and_fit():
    for total, room in ((0, [3, 3]), (5, [3, 3, 3]), (7, [0, 1, 9]), (10, [0, 1, 9]), (4, [9, 9, 9, 9])):
        shares = selection._shares(torch.tensor(total), torch.tensor(room))
        assert shares.sum() == total and (shares >= 0).all() and (shares <= torch.tensor(room)).all()


def test_tokens_in_doubt_beyond_the_reserve_are_counted(monkeypatch):
    """Rounding errors made out to be enormous: every token is in doubt, and one of 128 may be computed again."""
    monkeypatch.setattr(selection, "bfloat16_is_fast", lambda _: True)
    monkeypatch.setattr(certainty, "SAFETY", 1e6)
    given = tensors(10, 8, 520)
    _, uncertain = selection.top_k(given["x"], given["W_enc"], given["b_enc"], 4)
    assert 5 < uncertain <= 9  # a token that reaches no bound at all is not in doubt
    monkeypatch.undo()
    assert selection.top_k(given["x"], given["W_enc"], given["b_enc"], 4)[1] == 0


def test_float64_is_left_to_other_forms():
    x = torch.randn(4, 3, dtype=torch.float64)
    latents = encode("top_k", x, torch.randn(300, 3, dtype=torch.float64), torch.zeros(300, dtype=torch.float64), 2)
    assert latents.values.dtype == torch.float64


@pytest.mark.skipif(DEVICE != "cpu", reason="of a CPU")
def test_interpreter_is_used_only_when_asked_for():
    assert usable("cpu")
    with ops.use_backend(None):
        assert not usable("cpu")
        assert ops.status(torch.device("cpu"))["encode and decode"] in ("numba", "sparse")
        assert "made for" not in ops.status(torch.device("cpu"))["backend triton"]


@pytest.mark.parametrize("method", ["top_k", "batch_top_k", "matryoshka_batch_top_k"])
@pytest.mark.covering(shows=lambda method: {"batch" in method})  # kernels of a row, and of a batch
def test_a_run_has_the_reference_s_losses(method):
    """With dead latents that AuxK revives, projection, clipping and Adam in the row kernel."""

    def losses(backend: str) -> list[float]:
        with ops.use_backend(backend):
            options = {"dead_feature_threshold": 12, "k_aux": 1}  # some are dead after two of three batches
            t = TRAINERS[method](activation_dim=12, dict_size=256, k=2, steps=20, device=DEVICE, **options)
            return [t.update(t.step, x.to(DEVICE)).item() for x in Planted(dim=12).batches(3, 8)]

    assert losses("triton") == pytest.approx(losses("reference"), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_adam_takes_the_same_steps(dtype):
    def weights(backend: str) -> list[torch.Tensor]:
        generator = torch.Generator(DEVICE).manual_seed(0)
        unit = torch.nn.functional.normalize(torch.randn(7, 20, generator=generator), dim=1)
        params = [torch.nn.Parameter(t.to(dtype)) for t in (unit, torch.randn(1500, generator=generator))]
        groups = [{"params": params[:1], "unit_rows": True}, {"params": params[1:]}]
        with ops.use_backend(backend):
            optimizer = RowAdam(groups, lr=1e-2, max_grad_norm=1.0)
            for step in range(4):
                for p in params:
                    p.grad = torch.randn(p.shape, generator=generator).to(dtype)
                if step == 2:
                    params[1].grad[3] = torch.nan
                optimizer.step()
            assert optimizer.n_skipped == 1
        masters = [optimizer.state[p].get("master", p.detach()) for p in params]
        for p, master in zip(params, masters, strict=True):  # the interpreter cuts off where a GPU rounds
            torch.testing.assert_close(p.float(), master, rtol=torch.finfo(dtype).eps, atol=0)
        return masters

    for a, b in zip(weights("triton"), weights("reference"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_kernels_address_tables_of_more_than_32_bits():
    """By reading: an index of a row is made 64-bit before it is multiplied by the width."""
    for module in (pairs, candidates, adam):
        for name, kernel in vars(module).items():
            if not name.endswith("_kernel"):
                continue
            source = kernel.src if hasattr(kernel, "src") else __import__("inspect").getsource(kernel.fn)
            for line in source.splitlines():
                if "tl.program_id(0)" in line:
                    assert ".to(tl.int64)" in line, f"{name}: {line}"


COMPILE = """
import warnings
warnings.simplefilter("ignore")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dictionary_learning.ops._triton import adam, candidates, certainty, pairs

def compiles(kernel, types, **constants):
    remaining = iter(types.split())
    signature = {name: "constexpr" if name in constants else next(remaining) for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    for capability in (80, 90):
        compiled = triton.compile(ASTSource(kernel, signature, values), target=GPUTarget("cuda", capability, 32))
        assert ".visible .entry" in compiled.asm["ptx"]

F, B, L, I = "*fp32", "*bf16", "*i64", "*i32"
compiles(pairs._dots_kernel, f"{F} {F} {L} {L} {F} {F} i32 i32", HAS_BIAS=False, PAIRS=32, COLUMNS=128)
compiles(pairs._dots_kernel, f"{F} {B} {I} {I} {F} {F} i32 i32", HAS_BIAS=True, PAIRS=32, COLUMNS=128)
compiles(pairs._segment_kernel, f"{F} {L} {L} {F} {F} i32", COLUMNS=1024)
compiles(pairs._tile_kernel, f"{F} {L} {L} {F} {F} {F} {F} i32 i32", TILE=64, COLUMNS=1024)
compiles(pairs._join_kernel, f"{L} {L} {F} {F} {F} i32 i32", TILE=64, COLUMNS=1024)
compiles(candidates._maxima_kernel, f"{B} {F} i32 i32 i32", BLOCK=16, GROUP=64)
for finds_bound in (True, False):
    compiles(candidates._list_kernel, f"{F} {F} {F} {I} {I} i32 i32 fp32 fp32", FINDS_BOUND=finds_bound, WIDTH=2048)
for place, writes, each, keys in ((L, True, 0, False), (I, True, 128, False), (I, False, 0, False), (I, False, 0, True)):
    compiles(candidates._visit_kernel, f"{B} {I} {I} {F} {place} {place} {place} {I} {I} {F} {I} i32 i32 i64 i32 i32",
             WRITES=writes, EACH=each, COUNTS_KEYS=keys, BLOCK=16, GROUP=64, FILL=256)
for coarse, places in ((True, 128), (False, 1024)):
    compiles(certainty._clearance_kernel, f"{F} {F} {F} {F} {I} {F} {F} i32 fp32 fp32 fp32 fp32",
             IS_COARSE=coarse, PLACES=places, KEPT=64)
compiles(adam._norm_kernel, f"{F} {F} {F} i32", WIDTH=1024)
for gradient, copy, rate, unit, rounds in ((F, F, F, True, False), (B, B, "fp32", False, True)):
    compiles(adam._adam_kernel, f"{F} {gradient} {F} {F} {copy} {F} {rate} {F} {F} fp32 fp32 fp32 fp32 fp32 i64 i32",
             READS_RATE=rate == F, UNIT_ROWS=unit, ROUNDS=rounds, WIDTH=1024)
print("all compiled")
"""


def test_kernels_compile_for_gpus(tmp_path):
    """For compute capability 8.0 and 9.0, in a process without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, check=False
    )
    assert result.stdout.strip() == "all compiled", result.stderr[-2000:]


def test_trainers_that_share_a_product_learn_what_they_would_alone(monkeypatch):
    from dictionary_learning import TrainerTopK, trainSAE

    data = list(Planted(dim=12).batches(2, 5))
    # not by Adam, which makes a whole step of a gradient that is no more than rounding
    configs = [TrainerTopK.Config(k=k, dict_size=256, seed=k, optimizer=torch.optim.SGD, lr=100.0) for k in (1, 2)]

    def trained() -> list[torch.Tensor]:
        dictionaries = trainSAE(data, configs, 2, device=DEVICE, progress=False)
        return [p.detach() for dictionary in dictionaries for p in dictionary.parameters()]

    apart = trained()
    made = []
    monkeypatch.setattr(joint, "is_worthwhile", lambda x, encoders: made.append(len(encoders)) or True)
    together = trained()
    assert made == [2, 2]
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
