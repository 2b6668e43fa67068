"""Recorded steps: a CUDA graph of the loss and gradients, recorded on the CPU by `tests.recording`."""

import pytest
import torch

from dictionary_learning import ops, trainSAE
from dictionary_learning.errors import ConfigError
from dictionary_learning.ops._backend import VARIABLE
from dictionary_learning.trainers import TRAINERS, TrainerTopK, _dead_latents, _replay
from dictionary_learning.trainers._components import Component
from tests import shell
from tests.contracts.test_trainers import EVENTFUL, OPTIONS, has
from tests.contracts.test_wirings import PAIRS, REFUSED, batches, config
from tests.recording import record
from tests.tiny import DEVICE, Planted

WAITS = {"batch_top_k", "matryoshka_batch_top_k", "temporal"}
"""Methods of which the reference waits for the device. For the first two, Triton's kernels do not."""
RECORDED = [name for name in TRAINERS if name not in WAITS]


@pytest.fixture(autouse=True)
def recorder(monkeypatch):
    """Records on the CPU, where dead latents are known as late as on a GPU, and more often than every 100 steps."""
    if DEVICE == "cpu":
        monkeypatch.setitem(_replay.RECORDERS, "cpu", lambda _: record)
        monkeypatch.setenv(VARIABLE, "reference")  # what is fast on a CPU has shapes that depend on values
    monkeypatch.setattr(_dead_latents, "_LOOK_EVERY", 5)
    made = _dead_latents.DeadLatents.__init__

    def late(self, *given, **options):
        made(self, *given, **options)
        self._is_seen_at_once = False

    monkeypatch.setattr(_dead_latents.DeadLatents, "__init__", late)


def built(name, **options):
    wanted = {**OPTIONS, **EVENTFUL, "k_anneal_steps": 4, "sparsity_warmup_steps": 4, "device": DEVICE, **options}
    return TRAINERS[name](**{key: value for key, value in wanted.items() if key in has(name)})


def planted(n, size):
    return list(Planted().batches(n, size))


def losses(trainer, xs):
    return [trainer.update(trainer.step, x.to(DEVICE)) for x in xs]


def check_same(one, other, xs):
    """Checks that two trainers make the same steps, to the bit on a CPU."""
    tolerance = {} if DEVICE == "cpu" else {"rtol": 1e-3, "atol": 1e-5}
    for expected, got in zip(losses(one, xs), losses(other, xs), strict=True):
        assert torch.equal(expected, got) or torch.allclose(expected, got, **tolerance)
    for name, tensor in one.dictionary.state_dict().items():
        got = other.dictionary.state_dict()[name]
        assert torch.equal(tensor, got) or DEVICE != "cpu", name
    for name, value in one.metrics().items():
        assert torch.allclose(value, other.metrics()[name], equal_nan=True), name


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_steps_are_the_steps(name):
    plain, recorded = built(name), built(name, cuda_graph=True)
    check_same(plain, recorded, planted(32, 32))
    assert recorded.replayed.n_replays >= 12
    assert plain.replayed is None


@pytest.mark.parametrize(
    "options",
    [
        {"use_ghost_grads": True},
        {"pre_act_loss_coefficient": 0.1},
        {"resample_steps": 7},
        {"auxk_every": 2},
        {"max_loss_ratio": 2.0, "max_grad_norm": 1.0, "ema_decay": 0.9},
        {"optimizer": "muon"},
        {"multi_topk": True, "reconstruction_weight": 2.0},
    ],
    ids=str,
)
def test_recorded_steps_are_the_steps_with_every_part(options):
    plain, recorded = built("top_k", **options), built("top_k", **options, cuda_graph=True)
    xs = planted(32, 32)
    xs[27] = xs[27] * 100  # a spike
    check_same(plain, recorded, xs)
    assert recorded.replayed.n_replays >= 8


@pytest.mark.parametrize("name", ["top_k", "batch_top_k", "matryoshka_batch_top_k"])
def test_kernels_are_recorded(name):
    pytest.importorskip("triton")
    options = {"activation_dim": 8, "k": 1, "dict_size": 128, "k_anneal_steps": None}
    with ops.use_backend("triton"):
        plain, recorded = (built(name, **options, cuda_graph=graph) for graph in (False, True))
        check_same(plain, recorded, list(Planted(8).batches(4, 4)))
    assert recorded.replayed.n_replays == 2


@pytest.mark.parametrize("name", sorted(WAITS))
def test_what_waits_for_the_device_is_made_as_it_is(name, caplog):
    if DEVICE != "cpu":
        pytest.skip("the reference, which a GPU does not use")
    plain, recorded = built(name), built(name, cuda_graph=True)
    check_same(plain, recorded, planted(12, 32))
    assert recorded.replayed.n_replays == 0
    assert "steps are made without a graph" in caplog.text


@pytest.mark.parametrize(("trainer", "wiring"), [p for p in PAIRS if p not in REFUSED and p[0] in ("top_k", "gated")])
def test_recorded_steps_are_the_steps_with_every_wiring(trainer, wiring):
    options = {"activations_split_by_head": wiring == "heads", "progress": False, "device": DEVICE}
    data, given = batches(wiring, 12, 32), {**config(trainer, wiring), "warmup_steps": 2, "seed": 3}
    plain, recorded = (trainSAE(data, {**given, "cuda_graph": graph}, 12, **options) for graph in (False, True))
    for name, tensor in plain[0].state_dict().items():
        assert torch.equal(tensor, recorded[0].state_dict()[name]) or DEVICE != "cpu"


def test_a_resumed_trainer_records_anew():
    xs = planted(30, 32)
    plain, first = built("top_k"), built("top_k", cuda_graph=True)
    losses(first, xs[:14])
    second = built("top_k", cuda_graph=True)
    state = first.state_dict()
    second.load_state_dict(state)
    expected = losses(plain, xs)[14:]
    assert all(map(torch.allclose, losses(second, xs[14:]), expected))
    assert second.replayed.n_replays > 5


def test_a_replay_goes_by_the_weights_that_are_there():
    """As when a user writes into them, or loads others."""
    plain, recorded = built("top_k"), built("top_k", cuda_graph=True)
    xs = planted(24, 32)
    for trainer in (plain, recorded):
        losses(trainer, xs[:12])
        with torch.no_grad():
            trainer.dictionary.b_dec.add_(1.0)
        trainer.dictionary.b_enc.data = trainer.dictionary.b_enc.detach() * 0.5
    before = recorded.replayed.n_replays
    check_same(plain, recorded, xs[12:])
    assert recorded.replayed.n_replays >= before + 4


class Stale(Component):
    """Says that the loss reads nothing of it, and moves what it reads."""

    def __init__(self):
        self.factor = torch.ones((), device=DEVICE)

    def after_step(self, parts, step):
        self.factor = self.factor * 1.1

    def read_by_loss(self):
        return []

    def figures(self):
        return {}

    state_dict = load_state_dict = None


def test_what_is_wrong_is_found_and_given_up(monkeypatch, caplog):
    monkeypatch.setattr(_replay, "_CHECKED", (0, 3))
    objective = TrainerTopK.objective
    monkeypatch.setattr(
        TrainerTopK,
        "objective",
        lambda self, batch: (lambda loss: loss._replace(total=loss.total * self.components["stale"].factor))(
            objective(self, batch)
        ),
    )
    plain, recorded = built("top_k"), built("top_k", cuda_graph=True)
    for trainer in (plain, recorded):
        trainer.components["stale"] = Stale()
    xs = planted(40, 32)
    expected, got = losses(plain, xs), losses(recorded, xs)
    assert "a replay differs from the step itself" in caplog.text
    assert recorded.replayed.n_replays == 3
    near = [torch.allclose(*pair) for pair in zip(expected, got, strict=True)]
    n_wrong = near.index(False)
    assert n_wrong > 2 and all(near[:n_wrong])  # the first replay is right, and what follows is not


CHANGES = {
    "frozen": lambda t: t.dictionary.W_dec.requires_grad_(False),
    "a switch": lambda t: setattr(t.dictionary, "apply_b_dec_to_input", False),
    "a hook": lambda t: t.dictionary.W_enc.register_hook(lambda gradient: gradient * 2),
    "a gradient of one's own": lambda t: t.loss(planted(1, 8)[0]).total.backward(),
    "another loss": lambda t: setattr(
        t,
        "objective",
        lambda batch: TrainerTopK.objective(t, batch)._replace(total=batch.x.mean() * t.dictionary.b_enc.sum()),
    ),
    "initial state": lambda t: t.load_state_dict(built("top_k").state_dict()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_between_steps_changes_recorded_ones(change):
    plain, recorded = built("top_k"), built("top_k", cuda_graph=True)
    xs = planted(24, 32)
    for trainer in (plain, recorded):
        losses(trainer, xs[:14])
        CHANGES[change](trainer)
    assert recorded.replayed.n_replays > 2
    check_same(plain, recorded, xs[14:])


class Unknown(Stale):
    def read_by_loss(self):
        return None


@pytest.mark.parametrize("reason", ["own", "unknown", "autocast"])
def test_steps_that_cannot_be_recorded_say_why_and_are_made(reason, caplog, monkeypatch):
    trainer = built("top_k", cuda_graph=True)
    if reason == "own":
        trainer.may_draw = True
    if reason == "unknown":
        trainer.components["own"] = Unknown()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=reason == "autocast"):
        losses(trainer, planted(6, 32))
    said = {"own": "may draw random numbers", "unknown": "of own is not known", "autocast": "copies of weights"}
    assert said[reason] in caplog.text and not trainer.replayed.is_on
    assert trainer.step == 6


def test_a_step_in_parts_is_refused():
    for name in ("micro_acc_steps", "grad_acc_steps"):
        with pytest.raises(ConfigError, match="what is recorded is a step in one part"):
            TrainerTopK.Config(cuda_graph=True, **{name: 2})


def test_a_device_without_graphs_says_so(monkeypatch, caplog):
    monkeypatch.setattr(_replay, "RECORDERS", {})
    monkeypatch.setattr("dictionary_learning.trainers._base.RECORDERS", {})
    assert built("top_k", cuda_graph=True).replayed is None
    assert "has no effect on the device" in caplog.text


@pytest.fixture
def n_recorded(monkeypatch):
    """Returns the number of replays of each trainer that is made."""
    made = []

    class Counting(_replay.ReplayedSteps):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr("dictionary_learning.trainers._base.ReplayedSteps", Counting)
    return lambda: [each.n_replays for each in made]


def test_typed_configs_and_dicts_record(n_recorded):
    data = {"data": planted(8, 32), "steps": 8, "progress": False, "device": DEVICE}
    typed = TrainerTopK.Config(dict_size=48, k=3, cuda_graph=True)
    results = [
        trainSAE(trainer_configs=each, **data)[0]
        for each in (typed, {"trainer": "top_k", "dict_size": 48, "k": 3, "cuda_graph": True})
    ]
    results.append(trainSAE(trainer_configs=typed.replace(cuda_graph=False), **data)[0])
    assert n_recorded() == [6, 6]
    for other in results[1:]:
        assert all(torch.equal(p, q) for p, q in zip(results[0].parameters(), other.parameters(), strict=True))


def test_the_shell_and_a_run_file_record(n_recorded, tmp_path):
    plain, *recorded = shell.trained(tmp_path, ["--trainer", "top_k"], ["--cuda-graph"])
    assert n_recorded() == [1, 1]  # of three steps
    for other in recorded:
        assert all(torch.equal(value, other[name]) for name, value in plain.items())
