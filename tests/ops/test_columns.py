"""AuxK selects from what the method's own selection has computed: the same loss and gradients, without a product."""

import pytest
import torch

pytest.importorskip("numba")

from dictionary_learning.dictionaries import _coder
from dictionary_learning.ops import _columns, _scan
from dictionary_learning.ops._numba import _search
from dictionary_learning.trainers import TRAINERS
from tests.tiny import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="compiled loops keep columns")


def with_dead_latents(method, **options):
    trainer = TRAINERS[method](
        activation_dim=16, dict_size=2304, k=4, k_aux=32, steps=100, device="cpu", dead_feature_threshold=1, **options
    )
    x = torch.randn(600, 16) + 1
    trainer.update(0, x)
    dead = torch.arange(2304) % 7 > 0
    trainer.revival.dead.tokens_since_fired.copy_(dead * 1000)
    trainer.revival.dead._indices = dead.nonzero().squeeze(1)
    return trainer, x


def loss_and_gradients(trainer, x):
    loss = trainer.loss(x)
    loss.total.backward()
    gradients = {name: p.grad for name, p in trainer.dictionary.named_parameters()}
    for p in trainer.dictionary.parameters():
        p.grad = None
    return loss.terms["auxk_loss"].detach(), gradients


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("rows", [4096, 256])
@pytest.mark.parametrize("method", ["top_k", "batch_top_k", "matryoshka_batch_top_k"])
def test_auxk_from_kept_columns_equals_a_product_of_its_own(method, rows, coarse, monkeypatch):
    monkeypatch.setattr(_scan, "bfloat16_is_fast", lambda _: coarse)
    monkeypatch.setattr(_search, "_TILE_BYTES", 1 << 20)  # several tiles
    monkeypatch.setattr(_search, "_LEAST_LATENTS", 100)
    if method == "top_k":
        monkeypatch.setattr(_search, "_MOST_ROWS", rows)  # several parts of a batch
    trainer, x = with_dead_latents(method)
    used = []

    def kept(*arguments):
        used.append(_columns.kept_columns(*arguments))
        return used[-1]

    monkeypatch.setattr(_coder, "kept_columns", kept)
    multiplied, multiply = [], _search._multiply
    monkeypatch.setattr(_search, "_multiply", lambda x, W, b: multiplied.append(len(x) * len(W)) or multiply(x, W, b))
    found, gradients = loss_and_gradients(trainer, x)
    assert sum(multiplied) == 600 * 2304  # nothing for dead latents
    (values,) = used
    assert values.shape == (600, len(trainer.revival.dead.indices))
    assert values.dtype == (torch.bfloat16 if coarse else torch.float32)
    pre = x - trainer.dictionary.b_dec if trainer.dictionary.apply_b_dec_to_input else x
    pre = (pre @ trainer.dictionary.W_enc.T + trainer.dictionary.b_enc)[:, trainer.revival.dead.indices]
    torch.testing.assert_close(values.float(), pre.detach(), rtol=2e-2, atol=2e-2 if coarse else 1e-5)
    monkeypatch.setattr(_coder, "kept_columns", lambda *_: None)
    expected, alone = loss_and_gradients(trainer, x)
    torch.testing.assert_close(found, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, alone[name], msg=lambda m, name=name: f"{name}: {m}")


def test_what_is_not_the_same_product_is_not_used(monkeypatch):
    encoder = _columns.Encoder(torch.randn(64, 8), torch.zeros(64))
    latents, x = torch.arange(5), torch.randn(3, 8)
    with _columns.keeping_columns(encoder, latents):
        assert _columns.columns_to_keep(x, encoder._replace(b=torch.zeros(64))) is None  # another bias
        wanted = _columns.columns_to_keep(x, encoder)
        wanted.values = torch.randn(3, 5)
        assert _columns.columns_to_keep(x, encoder) is None  # once
        assert _columns.kept_columns(x, encoder, latents) is wanted.values
        assert _columns.kept_columns(x.clone(), encoder, latents) is None
        assert _columns.kept_columns(x, encoder, latents + 1) is None
        assert _columns.kept_columns(x, encoder._replace(W=encoder.W.clone()), latents) is None
    assert _columns.kept_columns(x, encoder, latents) is None


@pytest.mark.parametrize(
    "options", [{"auxk_every": 2}, {"rank_by_norm": True, "unit_norm_decoder": False}, {"auxk_alpha": 0.0}]
)
def test_other_settings_have_a_product_of_their_own(options, monkeypatch):
    trainer, x = with_dead_latents("top_k", **options)
    used = []
    monkeypatch.setattr(_coder, "kept_columns", lambda *a: used.append(_columns.kept_columns(*a)))
    trainer.loss(x)
    # where latents are ranked by norm, what the selection has computed is not of their values
    assert used == ([None] if "auxk_every" in options else [])
