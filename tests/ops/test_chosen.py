"""Pre-activations chosen by a rule: as the dense ones at the chosen places, in values and every gradient."""

import pytest
import torch

from dictionary_learning import ops
from dictionary_learning.latents import SparseLatents, to_dense
from dictionary_learning.ops import _selection as chosen
from tests.ops.test_ops import encode
from tests.tiny import DEVICE

RULES = {
    "few by mask": lambda pre: pre > 2.5,
    "most by mask": lambda pre: pre > -1.0,
    "none by mask": lambda pre: torch.zeros_like(pre, dtype=torch.bool),
    "indices": lambda pre: pre.abs().topk(3, sorted=False).indices,
    "many indices": lambda pre: pre.topk(30).indices,
    "all indices": lambda pre: pre.sort(-1).indices,
}


def mask_of(rule: str, pre: torch.Tensor) -> torch.Tensor:
    wanted = RULES[rule](pre)
    if wanted.dtype == torch.bool:
        return wanted
    return torch.zeros_like(pre, dtype=torch.bool).scatter(1, wanted, True)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("chunk", [40, 7 * 40, 1 << 21])
@pytest.mark.parametrize("backend", ["reference", "sparse"])
@pytest.mark.parametrize(
    "rule", ["few by mask", "most by mask", "none by mask", "indices", "many indices", "all indices"]
)
def test_chosen_equal_dense_at_their_places(rule, backend, chunk, centered, monkeypatch):
    monkeypatch.setattr(chosen, "_CHUNK_ELEMENTS", chunk)  # one row at once, seven, all
    x, W, b, center = (
        torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((24, 6), (40, 6), (40,), (6,))
    )
    leaves = [x, W, b, *([center] if centered else [])]
    pre = (x - center if centered else x) @ W.T * 0.5 + b  # W / 2 below: its gradient is checked through a factor too
    mask = mask_of(rule, pre.detach())
    with ops.use_backend(backend):
        got = encode("encode_where", x, W * 0.5, b, RULES[rule], center if centered else None)
    dense = to_dense(got)
    torch.testing.assert_close(dense * mask, pre * mask)
    if isinstance(got, SparseLatents):
        assert torch.equal(dense != 0, mask)
        assert got.support.n_tokens == 24 and got.dict_size == 40
    weights = torch.randn(24, 40, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((v * mask * weights).sum(), leaves) for v in (dense, pre))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("rule", "sparse"), [("few by mask", True), ("most by mask", False), ("indices", True)])
def test_form_is_the_cheaper_one(rule, sparse):
    with ops.use_backend("sparse"):
        got = encode("encode_where", torch.randn(24, 6), torch.randn(40, 6) * 0.5, torch.zeros(40), RULES[rule])
    assert isinstance(got, SparseLatents) == sparse


@pytest.mark.parametrize("rule", ["few by mask", "most by mask", "indices"])
@pytest.mark.parametrize("backend", ["reference", "sparse"])
def test_no_token_has_no_latents(backend, rule):
    x, W = torch.randn(0, 6), torch.randn(40, 6, requires_grad=True)
    with ops.use_backend(backend):
        got = encode("encode_where", x, W, torch.zeros(40), RULES[rule])
    assert to_dense(got).shape == (0, 40)
    to_dense(got).sum().backward()
    assert not W.grad.any()


@pytest.mark.parametrize("backend", ["reference", "sparse"])
def test_negative_values_pass_and_have_gradients(backend):
    x, W = torch.ones(2, 3), -torch.ones(50, 3)
    W.requires_grad_()
    with ops.use_backend(backend):
        got = encode("encode_where", x, W, torch.zeros(50), lambda pre: pre.topk(1).indices * 0 + 4)
        to_dense(got).sum().backward()
    assert to_dense(got)[:, 4].tolist() == [-3, -3]
    assert W.grad.abs().sum(1).nonzero().tolist() == [[4]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", ["few by mask", "indices"])
def test_low_precision_and_autocast_change_nothing(rule, dtype):
    x, W, b = (torch.randn(*s).to(dtype) for s in ((24, 6), (40, 6), (40,)))
    expected = to_dense(encode("encode_where", x.float(), W.float(), b.float(), RULES[rule]))
    with torch.autocast(DEVICE, dtype):
        got = to_dense(encode("encode_where", x, W, b, RULES[rule]))
    assert got.dtype == torch.float32 and torch.equal(got, expected)


def test_pairs_stand_token_by_token():
    pre = torch.randn(24, 40)
    pairs = chosen.chosen_pairs(pre, torch.eye(40), torch.zeros(40), lambda rows: rows > 2)
    assert pairs is not None
    values, support = pairs
    places = (pre > 2).nonzero()
    assert torch.equal(support.tokens, places[:, 0]) and torch.equal(support.latents, places[:, 1])
    assert torch.equal(values, pre[pre > 2])
