"""Subclasses of named classes: their own `encode` and `decode` make all latents and outputs."""

import inspect

import pytest
import torch
from torch import nn

from dictionary_learning import trainSAE
from dictionary_learning.dictionaries import DICTIONARIES, Coder, Dictionary
from dictionary_learning.dictionaries._parallel_coders import ParallelCoders
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import to_dense
from dictionary_learning.trainers import TRAINERS, SAETrainer
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from tests.contracts.dictionary_cases import NAMED, PAIRS, X, build
from tests.tiny import Planted

CASES = [*[pair for pair in PAIRS if pair[1] in ("batch_top_k", "jump_relu")], *NAMED]
METHODS = [name for name, trainer in TRAINERS.items() if hasattr(trainer.Config, "wiring") and name != "end_to_end"]


def encode_3(self, x, *older, **flags):
    made = type(self).__mro__[1].encode(self, x, *older, **flags)
    return made * 3 if isinstance(made, torch.Tensor) else (made[0] * 3, *made[1:])


def decode_1(self, *given, **named):
    return type(self).__mro__[1].decode(self, *given, **named) + 100


def own(dictionary, **methods):
    """Returns the dictionary as one of a subclass with some methods of its own."""
    # as a class statement of a script makes it: functions of this module
    dictionary.__class__ = type("Own", (type(dictionary),), methods)
    return dictionary


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("methods", [{"encode": encode_3}, {"decode": decode_1}], ids=["encode", "decode"])
def test_forward_and_reconstruct_are_decode_of_encode(case, methods):
    plain = build(case).eval()
    latents = plain.encode(X) * (3 if "encode" in methods else 1)
    skip = getattr(plain, "W_skip", None) is not None
    x_hat = (plain.decode(latents, X) if skip else plain.decode(latents)) + (100 if "decode" in methods else 0)
    mine = own(plain, **methods)
    torch.testing.assert_close(mine.encode(X), latents)
    torch.testing.assert_close(mine(X), x_hat)
    made = mine.reconstruct(X)
    torch.testing.assert_close(made.outputs, x_hat)
    torch.testing.assert_close(to_dense(made.latents), latents)
    both = mine(X, output_features=True)
    torch.testing.assert_close(both[0], x_hat)
    if case != "AutoEncoderNew":  # whose latents are returned times norms
        torch.testing.assert_close(both[1], latents)
    with pytest.raises(ConfigError, match="width"):
        mine(torch.zeros(3, 5))


def test_flags_of_0_1_reach_what_super_returns():
    class Gain(AutoEncoderTopK):
        def encode(self, x, return_topk=False, use_threshold=False):
            made = super().encode(x, return_topk=return_topk, use_threshold=use_threshold)
            return (made[0] * 3, made[1] * 3, *made[2:]) if return_topk else made * 3

    ae = Gain(12, 40, 4)
    dense, values, indices, _ = ae.encode(X, return_topk=True)
    torch.testing.assert_close(dense.gather(1, indices), values)
    torch.testing.assert_close(ae.reconstruct(X).outputs, ae.decode(dense))


def gained(cls):
    """Returns a subclass of a dictionary with a parameter of its own in latents and in outputs."""

    class Gain(cls):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.gain = nn.Parameter(torch.linspace(0.5, 2, self.dict_size))
            self.offset = nn.Parameter(torch.ones(self.activation_dim))

        def encode(self, x, *older, **flags):
            made = super().encode(x, *older, **flags)
            return made * self.gain if isinstance(made, torch.Tensor) else (made[0] * self.gain, *made[1:])

        def decode(self, *given, **named):
            return super().decode(*given, **named) + self.offset

    return Gain


@pytest.mark.parametrize("name", METHODS)
def test_training_uses_them(name):
    cls = TRAINERS[name]
    facts = {"steps": 20, "activation_dim": 16, "dict_size": 48, "device": "cpu", "seed": 0}
    known = inspect.signature(cls.Config).parameters
    facts |= {"k": 4} if "k" in known else {}
    plain = cls(**facts).dictionary
    trainer = cls(**facts, dict_class=gained(type(plain)))
    ae, x = trainer.dictionary, Planted(16).batch(64)
    trainer.update(0, x)
    loss = trainer.loss(x)
    latents = to_dense(loss.reconstruction.latents)
    with torch.no_grad():  # the class's own latents of what its base keeps in training
        own_gain, ae.gain.data = ae.gain.data, torch.ones(48)
        base = to_dense(trainer.loss(x).reconstruction.latents)
        ae.gain.data = own_gain
    torch.testing.assert_close(latents, base * ae.gain)
    if name != "matryoshka_batch_top_k":
        torch.testing.assert_close(loss.error, (ae.decode(latents) - x).pow(2).sum(-1).mean())
    before = ae.gain.detach().clone()
    trainer.update(1, x)
    assert not torch.equal(ae.gain, before)
    trainer.finish()


def test_what_is_not_called_is_told(caplog):
    class Forward(AutoEncoderTopK):
        def forward(self, x, output_features=False):
            return super().forward(x, output_features)

    TopKTrainer(steps=3, activation_dim=8, dict_size=32, k=4, device="cpu", dict_class=Forward)
    assert "Forward.forward is not called" in caplog.text
    with pytest.raises(ConfigError, match=r"Own\.encode returned"):
        own(build("AutoEncoderTopK"), encode=lambda self, x: x).reconstruct(X)


def test_no_class_of_this_package_is_taken_for_a_users():
    for _, cls in DICTIONARIES.items():
        if issubclass(cls, (Coder, ParallelCoders)):
            assert not cls.encodes_itself and not cls.decodes_itself, cls


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_0_1_on_a_method_of_this_package_are_refused(name):
    base = TRAINERS[name]
    older = {
        "loss": [lambda self, x, step, logging=False, **kw: 0, lambda self, x, step=None, logging=False: 0],
        "update": [lambda self, step, x: 0],
    }
    for method, written in older.items():
        for one in written:
            with pytest.raises(ConfigError, match=rf"Mine\.{method}.*objective.*SAETrainer"):
                type("Mine", (base,), {method: one})
    with pytest.raises(ConfigError, match=r"extra.*class Config"):

        class Mine(base):
            def __init__(self, *arguments, extra=3, **options):
                super().__init__(*arguments, **options)

        trainSAE(list(Planted(16).batches(2, 32)), [{"trainer": Mine, "extra": 5, "dict_size": 48}], 2, progress=False)


def test_an_update_that_passes_all_on_is_called():
    class Counting(TopKTrainer):
        n_seen = 0

        def update(self, step, x, *further, **options):
            self.n_seen += len(x)
            return super().update(step, x, *further, **options)

    t = Counting(steps=3, activation_dim=16, dict_size=48, k=4, device="cpu")
    t.update(0, Planted(16).batch(64))
    assert t.n_seen == 64 and t.step == 1


class Unscaled(Dictionary):
    """As a class of 0.1, without `scale_biases`."""

    def __init__(self, activation_dim, dict_size):
        super().__init__()
        self.activation_dim, self.dict_size = activation_dim, dict_size
        self.E, self.D = nn.Linear(activation_dim, dict_size), nn.Linear(dict_size, activation_dim)

    def encode(self, x):
        return self.E(x).relu()

    def decode(self, f):
        return self.D(f)


class OwnTrainer(SAETrainer):
    n_updates = 0

    def __init__(self, activation_dim, dict_size, **_):
        super().__init__(None)
        self.ae = Unscaled(activation_dim, dict_size)
        self.optimizer = torch.optim.Adam(self.ae.parameters())

    def update(self, step, x):
        OwnTrainer.n_updates += 1
        self.optimizer.zero_grad()
        (self.ae(x) - x).pow(2).sum(-1).mean().backward()
        self.optimizer.step()


def test_a_dictionary_without_scales_is_saved_or_refused_before_training(tmp_path):
    config = {"trainer": OwnTrainer, "activation_dim": 16, "dict_size": 48, "steps": 3, "layer": 0, "lm_name": "m"}
    data, options = list(Planted(16).batches(3, 32)), {"progress": False, "device": "cpu"}
    for form in ("own", "dictionary_learning"):
        (ae,) = trainSAE(data, [config], 3, save_dir=tmp_path / form, save_steps=[1], save_format=form, **options)
        state = torch.load(tmp_path / form / "trainer_0" / "ae.pt", weights_only=True)
        assert state.keys() == ae.state_dict().keys() and torch.equal(state["E.weight"], ae.E.weight)
    OwnTrainer.n_updates = 0
    with pytest.raises(ConfigError, match="cannot be scaled by"):
        trainSAE(data, [config], 3, normalize_activations=True, **options)
    assert OwnTrainer.n_updates == 0
