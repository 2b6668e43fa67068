"""Nonlinearities on their own, and one that a user's file adds."""

import pytest
import torch

from dictionary_learning.dictionaries import (
    SparseAutoencoder,
    calibrate,
    expand_or_convert,
    load_dictionary,
    save_dictionary,
)
from dictionary_learning.dictionaries.nonlinearities import (
    NONLINEARITIES,
    BatchTopK,
    Elementwise,
    Gated,
    JumpReLU,
    RuleSelection,
    SparseSelection,
    ThresholdedTopK,
    TopK,
)
from dictionary_learning.errors import ConfigError
from dictionary_learning.ops import Encoder
from tests.tiny import DEVICE

KINDS = [name for name, _ in NONLINEARITIES.items()]


def build(name: str, dict_size: int = 40):
    kind = NONLINEARITIES[name]
    made = kind(k=3) if issubclass(kind, SparseSelection) else kind()
    made.setup(dict_size)
    if isinstance(made, ThresholdedTopK):
        made.threshold.fill_(0.3)
    return made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", [name for name in KINDS if not NONLINEARITIES[name].is_tied])
def test_latents_have_the_dtype_of_pre_activations(name, dtype):
    made, pre = build(name).to(dtype), torch.randn(5, 40, dtype=dtype)
    assert made(pre).dtype == dtype
    if isinstance(made, Elementwise):
        assert made.activate(pre[:, :3], torch.tensor([[4, 2, 7]]).expand(5, 3)).dtype == dtype
        assert made.support_mask(pre).dtype == torch.bool
    for method in ("gate", "fires", "above_threshold"):
        if hasattr(made, method):
            assert getattr(made, method)(pre).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", [n for n in KINDS if issubclass(NONLINEARITIES[n], SparseSelection)])
def test_sparse_latents_are_float32_at_least(name, dtype):
    encoder = Encoder(torch.randn(40, 6).to(dtype), torch.randn(40).to(dtype), torch.randn(6).to(dtype))
    latents = build(name).encode_sparse(torch.randn(5, 6).to(dtype), encoder, 3)
    assert latents.values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("name", KINDS)
def test_what_a_nonlinearity_says_of_itself_is_true(name):
    made = build(name)
    if made.is_tied:
        assert not made.is_masked_relu
        return
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.rand_like(p))
        pre = torch.randn(50, 40) - torch.linspace(0, 3, 50).unsqueeze(1)  # some tokens have no positive ones
        latents = made(pre)
        is_masked = ((latents == 0) | (latents == pre.relu())).all() and (latents >= 0).all()
        assert is_masked == made.is_masked_relu
        scale, bias, threshold = made.threshold_form()
        if threshold is not None:
            z = scale * pre + bias
            by_threshold = made.above_threshold(pre) if isinstance(made, ThresholdedTopK) else latents
            torch.testing.assert_close(z * (z > threshold), by_threshold)
        assert bool(made.biases()) == made.has_bias
        new, bias, threshold = build(name), torch.randn(40), torch.rand(40)
        values = new.from_threshold_form(bias, threshold)
        assert all(own is not None for own in values.values())
        for own, value in values.items():
            getattr(new, own).copy_(value)
        if values:
            z = pre + bias
            torch.testing.assert_close(new(pre if new.has_bias else z), z * (z > threshold))


@pytest.mark.parametrize("k", [1.5, "many", None, 0, -2])
@pytest.mark.parametrize("name", [name for name in KINDS if issubclass(NONLINEARITIES[name], SparseSelection)])
def test_k_is_a_positive_whole_number(as_for_a_user, name, k):
    with pytest.raises(ConfigError, match=f"k={k!r}") as raised:
        NONLINEARITIES[name](k=k)
    assert ("SAELens" in str(raised.value)) == (name == "batch_top_k" and k not in (0, -2))


@pytest.mark.skipif(DEVICE != "cpu", reason="a default device doubles the calls that are counted")
@pytest.mark.parametrize("kind", [TopK, BatchTopK])
def test_the_threshold_is_read_once_until_it_changes(kind, monkeypatch):
    """Each read makes the host wait for an accelerator."""
    made, pre, reads = kind(3), torch.randn(5, 40), []
    read = torch.Tensor.__float__
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: reads.append(0) or read(tensor))
    for _ in range(2):
        with pytest.raises(ConfigError, match="no learnt threshold"):
            made.above_threshold(pre)
    made.threshold.copy_(torch.tensor(0.5))
    for _ in range(3):
        assert torch.equal(made.above_threshold(pre), pre * (pre > 0.5))
    assert len(reads) == 2
    made.load_state_dict({"threshold": torch.tensor(-1.0)})
    with pytest.raises(ConfigError, match="no learnt threshold"):
        made.above_threshold(pre)
    with torch.inference_mode():
        other = kind(3)
        other.threshold.fill_(0.5)
    assert torch.equal(other.above_threshold(pre), pre * (pre > 0.5))


@pytest.fixture
def plug_ins(monkeypatch):
    """Nonlinearities of a user's file: one of each base class."""
    monkeypatch.setattr(NONLINEARITIES, "_entries", dict(NONLINEARITIES._entries))

    @NONLINEARITIES.register("square")
    class Square(Elementwise):
        def activate(self, pre, latents=None):
            return pre.relu() * pre

        def support_mask(self, pre):
            return pre > 0

    @NONLINEARITIES.register("largest_even")
    class LargestEven(RuleSelection):
        is_masked_relu = True

        def choose(self, pre, k):
            return 2 * pre[..., ::2].topk(k).indices

        def value(self, pre):
            return pre.relu()

        def scale_latents_(self, factors):
            raise AssertionError("not with one scale for all")

    return {"square": {}, "largest_even": {"k": 3}}


def test_a_nonlinearity_of_a_user_works_in_every_path(plug_ins, tmp_path):
    x = torch.randn(60, 6)
    for name, options in plug_ins.items():
        built = SparseAutoencoder(6, 40, {"name": name, **options})
        built.reconstruct(x)[0].square().sum().backward()
        assert built.W_enc.grad is not None and built.W_enc.grad.any()
        latents = built.encode(x)
        loaded = load_dictionary(save_dictionary(built, tmp_path / name))
        assert torch.equal(loaded.encode(x), latents) and loaded.options() == built.options()
        wider = expand_or_convert(built, expansion=2)
        assert type(wider.nonlinearity) is type(built.nonlinearity) and wider.dict_size == 80
        assert expand_or_convert(built, nonlinearity={"name": "top_k", "k": 3}).encode(x).count_nonzero(1).max() <= 3
        assert type(expand_or_convert(built, nonlinearity=Gated()).nonlinearity) is Gated
        if name == "square":
            with pytest.raises(ConfigError, match="Square is no threshold"):
                calibrate(built, [x], 60, target_l0=3)
            continue
        scaled = expand_or_convert(built)
        scaled.scale_(2.5)
        torch.testing.assert_close(scaled.encode(2.5 * x), 2.5 * latents)
        made = calibrate(built, [x], 60)
        assert isinstance(made.nonlinearity, JumpReLU) and (made.encode(x) > 0).sum() == 180
