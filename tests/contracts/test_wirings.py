"""What every trainer promises with every wiring, through `trainSAE`."""

import pytest
import torch

from dictionary_learning import trainSAE
from dictionary_learning.dictionaries import WIRINGS, load_dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.sites import Site
from dictionary_learning.trainers import TRAINERS
from tests.contracts.test_trainers import LEARNS, family, has
from tests.tiny import Planted

DIM, OUT, HEADS, STEPS = 32, 24, 4, 60
SITES = {
    "autoencoder": ["m.0:out"],
    "heads": ["m.0:out"],
    "transcoder": ["m.0:in", "m.0:out"],
    "skip_transcoder": ["m.0:in", "m.0:out"],
    "crosscoder": ["m.0:out", "m.1:out", "m.2:out"],
    "cross_layer_transcoder": ["m.0:in", "m.0:out", "m.1:in", "m.1:out"],
}
REFUSED = {
    ("matching_pursuit", "transcoder"),
    ("matching_pursuit", "skip_transcoder"),
    ("matching_pursuit", "cross_layer_transcoder"),
    ("matryoshka_batch_top_k", "heads"),
    ("matryoshka_batch_top_k", "cross_layer_transcoder"),
}
"""One matrix cannot serve two widths, and groups of prefixes not several parts."""
GRADUAL = {"penalty": "penalized", "gated": "penalized", "jump_relu": "penalized"}
"""Families whose sparsity is learnt, not chosen."""
PAIRS = [(t, w) for t in TRAINERS for w in WIRINGS if t not in ("end_to_end", "temporal")]


def batches(wiring: str, steps: int = STEPS, n: int = 128) -> list[dict[Site, torch.Tensor]]:
    """Returns activations that are linear functions of the same planted features, of other scale and width at each site."""
    data, generator = Planted(DIM), torch.Generator().manual_seed(1)
    maps = {}
    for number, site in enumerate(map(Site.parse, SITES[wiring])):
        width = OUT if site.side == "out" and len(SITES[wiring]) > 1 else DIM
        maps[site] = torch.randn(DIM, width, generator=generator) * (number + 1) / DIM**0.5
    return [{site: x @ matrix for site, matrix in maps.items()} for x in data.batches(steps, n)]


def config(trainer: str, wiring: str) -> dict:
    options = {"k": 4, "dict_size": 96, "wiring": wiring, **LEARNS.get(trainer, {})}
    if wiring == "heads":
        options["n_heads"] = HEADS
    if wiring in ("heads", "cross_layer_transcoder"):
        options["k"] = 2
    if wiring != "autoencoder" and trainer not in ("top_k", "batch_top_k"):
        # at 1e-2 these two go up and down, and where they are after so few steps is the rounding's to say
        options["lr"] = 5e-3 if trainer in ("gated", "jump_relu") else 1e-2
        options["bandwidth"] = 0.03  # activations of several sites are normalized
    return {"trainer": trainer, **{name: value for name, value in options.items() if name in has(trainer)}}


def trained(trainer: str, wiring: str, steps: int, folder=None):
    options = {"save_dir": folder, "activations_split_by_head": wiring == "heads", "progress": False}
    (dictionary,) = trainSAE(batches(wiring, steps), config(trainer, wiring), steps, **options)
    return dictionary


def sides(wiring: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what a dictionary reads of other tokens, and what it is to write."""
    held_out = batches(wiring, 1, 512)[0]
    reads, writes = (
        torch.cat(
            [x for site, x in held_out.items() if len(held_out) == 1 or site.side == side or wiring == "crosscoder"], 1
        )
        for side in ("in", "out")
    )
    return reads, writes


# each method, and of each family every wiring
@pytest.mark.covering(shows=lambda trainer, wiring: {trainer, (GRADUAL.get(family(trainer), "chosen"), wiring)})
@pytest.mark.parametrize(("trainer", "wiring"), [pair for pair in PAIRS if pair not in REFUSED])
def test_learns_from_sites(trainer, wiring):
    dictionary, (reads, writes) = trained(trainer, wiring, STEPS), sides(wiring)
    error = (dictionary.reconstruct(reads).outputs - writes).pow(2).sum() / (writes - writes.mean(0)).pow(2).sum()
    assert error < 0.9


@pytest.mark.parametrize(("trainer", "wiring"), PAIRS)
def test_trains_from_sites_and_is_read_back(trainer, wiring, tmp_path):
    if (trainer, wiring) in REFUSED:
        with pytest.raises(ConfigError):
            trained(trainer, wiring, 3)
        return
    dictionary, (reads, _) = trained(trainer, wiring, 3, tmp_path), sides(wiring)
    reconstruction = dictionary.reconstruct(reads)
    loaded = load_dictionary(tmp_path / "trainer_0")
    saved = loaded.info.config
    assert torch.equal(loaded.reconstruct(reads).outputs, reconstruction.outputs)
    assert saved["trainer"]["wiring"] == wiring


def test_pairs_of_one_tensor_are_input_and_output():
    """As `ActivationBuffer(io="in_and_out")` serves one module."""
    data = [torch.stack([x, 2 * x], dim=1) for x in Planted().batches(40, 128)]
    (pairs,) = trainSAE(data, {"trainer": "top_k", "k": 4, "dict_size": 96}, 40, transcoder=True, progress=False)
    split = [{"activations:in": both[:, 0], "activations:out": both[:, 1]} for both in data]
    (sites,) = trainSAE(
        split, {"trainer": "top_k", "k": 4, "dict_size": 96, "wiring": "transcoder"}, 40, progress=False
    )
    assert type(pairs).__name__ == "Transcoder"
    assert all(torch.equal(p, q) for p, q in zip(pairs.parameters(), sites.parameters(), strict=True))


def test_heads_come_apart_or_together():
    """(batch, heads, dim) and (batch, heads * dim) are the same activations."""
    apart = [x.unflatten(1, (HEADS, -1)) for x in Planted().batches(20, 128)]
    config = {"trainer": "top_k", "k": 2, "dict_size": 96}
    (first,) = trainSAE(apart, config, 20, activations_split_by_head=True, progress=False)
    together = [x.flatten(1) for x in apart]
    (second,) = trainSAE(together, {**config, "wiring": "heads", "n_heads": HEADS}, 20, progress=False)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_wiring_without_its_sites_is_refused():
    with pytest.raises(ConfigError, match="io='in_and_out'"):
        trainSAE([torch.randn(8, 4)], {"trainer": "top_k", "k": 2, "wiring": "transcoder"}, 1, progress=False)
    with pytest.raises(ConfigError, match="which reconstructs what it reads"):
        trainSAE([torch.randn(8, 4)], {"trainer": "top_k", "k": 2, "target_site": "a:out"}, 1, progress=False)
