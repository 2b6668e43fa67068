"""The power of p-annealing reaches its end, and the penalty keeps its size when the power changes."""

import pytest
import torch

from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers import TRAINERS
from dictionary_learning.trainers._penalties import PENALTIES, sparsity_of
from tests.tiny import Planted

NAMES = ["p_anneal", "gated_anneal"]


def build(name: str, **options):
    common = {"activation_dim": 32, "dict_size": 96, "steps": 60, "device": "cpu", "sparsity_warmup_steps": 0}
    return TRAINERS[name](**{**common, **options})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_updates", [10, 3, "continuous"])
def test_power_starts_and_ends_where_it_should_within_the_run(name, n_updates):
    settings = build(name, p_end=0.2, n_sparsity_updates=n_updates).settings
    powers = [settings.power_at(step) for step in range(60)]
    assert powers[0] == 1.0 and powers[-1] == pytest.approx(0.2)
    assert powers == sorted(powers, reverse=True)
    assert len(set(powers)) == (40 if n_updates == "continuous" else n_updates + 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("function", ["Lp^p", "Lp"])
@pytest.mark.parametrize("by_norm", [False, True])
def test_penalty_keeps_its_size_when_the_power_changes(name, function, by_norm):
    """Of the penalty as it is: with its root, and with latents weighted by decoder norm."""
    options = {"scale_sparsity_penalty_by_decoder_norm": by_norm, "unit_norm_decoder": not by_norm}
    t = build(name, sparsity_function=function, sparsity_queue_length=1, n_sparsity_updates=2, lr=0.0, **options)
    x = Planted().batch(64)
    t.initialize(x)
    if by_norm:
        with torch.no_grad():
            t.dictionary.W_dec.mul_(torch.linspace(0.5, 3, 96).unsqueeze(1))

    @torch.no_grad()
    def size(p: float) -> float:
        sparsity = sparsity_of(t.dictionary, t.settings, t.loss(x).reconstruction)
        return float(PENALTIES[function](sparsity, lp_norm=p) * t.annealed.weight)

    before, p = size(t.settings.power_at(0)), t.settings.power_at(0)
    while t.settings.power_at(t.step) == p:
        t.update(t.step, x)
    assert t.settings.power_at(t.step) < p
    assert size(t.settings.power_at(t.step)) == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_settings_without_effect_are_refused(name):
    with pytest.raises(ConfigError, match="lp_norm"):
        build(name, lp_norm=0.5)
    with pytest.raises(ConfigError, match="p_end <= p_start"):
        build(name, p_start=0.5, p_end=0.6)
    with pytest.raises(ConfigError, match="the start must come before"):
        build(name, anneal_start=50, anneal_end=40)
