"""What the caller has set in PyTorch changes no result, and is as it was afterwards."""

import contextlib
import threading

import pytest
import torch

from dictionary_learning import (
    ActivationBuffer,
    AutoEncoder,
    AutoEncoderTopK,
    Candidate,
    ContextStream,
    EvaluationConfig,
    evaluate_dictionaries,
    load_dictionary,
    load_model,
    save_dictionary,
    trainSAE,
    write_cache,
)
from dictionary_learning._usual_state import usual_state
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.attribution import attribute, log_probability
from dictionary_learning.evaluation import evaluate_activations
from dictionary_learning.interventions import generate, read_latents
from dictionary_learning.trainers import TRAINERS
from tests import tiny
from tests.contracts.test_paths import options_of
from tests.test_random_numbers import OwnSteps

SITE = "model.layers.1"
ROWS = list(tiny.Planted(dim=tiny.DIM).batches(4, 64))
IDS = torch.arange(3, 21).view(2, 9)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "device": lambda: torch.device("meta"),
}
AROUND = {**STATES, "autocast": lambda: torch.autocast("cpu", torch.bfloat16)}
"""What changes no result of a function; the steps of a trainer that is used by hand follow autocast."""


def state() -> tuple:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.empty(0).device,
        torch.is_autocast_enabled("cpu"),
        torch.get_rng_state().tolist(),
    )


class Place:
    """What entry points are given; made in the usual state."""

    def __init__(self, folder):
        self.folder = folder
        self.model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
        tiny.save_model(folder / "model")
        self.texts = tiny.documents(60)
        (self.dictionary,) = train(self.buffer())
        save_dictionary(self.dictionary, folder / "saved")
        write_cache(folder / "cache", self.texts, self.model, SITE, ctx_len=16)
        self.number = 0

    def buffer(self):
        sizes = {"n_ctxs": 8, "ctx_len": 16, "refresh_batch_size": 4, "out_batch_size": 32}
        return ActivationBuffer(self.texts, self.model, SITE, **sizes, device="cpu")

    def new(self):
        self.number += 1
        return self.folder / str(self.number)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("place"))


def train(data=ROWS, config=None, **options):
    config = {"trainer": "top_k", "k": 4, "dict_size": 32} if config is None else config
    return trainSAE(data, config, 3, progress=False, device="cpu", **options)


def by_hand(name):
    trainer = (
        TRAINERS[name]
        .Config(**options_of(TRAINERS[name].Config, dict_size=32))
        .build(activation_dim=tiny.DIM, steps=3, device="cpu")
    )
    for step, x in enumerate(ROWS[:3]):
        trainer.update(step, x)
    trainer.finish()
    return [*trainer.export().state_dict().values(), *trainer.get_logging_parameters().values()]


def saved(p):
    place = p.new()
    save_dictionary(p.dictionary, place)
    return load_dictionary(place)


def written(p):
    place = p.new()
    write_cache(place, p.texts, p.model, SITE, ctx_len=16)
    return next(ActivationCache(place, out_batch_size=32))


ENTRIES = {
    "trainSAE": lambda p: train(),
    "trainSAE on a buffer": lambda p: train(p.buffer()),
    "trainSAE on contexts": lambda p: train(
        ContextStream(p.texts, p.model, SITE, ctx_len=16, batch_size=4),
        {"trainer": "end_to_end", "k": 4, "dict_size": 32},
    ),
    "trainSAE on a cache": lambda p: train(ActivationCache(p.folder / "cache", out_batch_size=32)),
    "trainSAE with a trainer of 0.1": lambda p: train(
        config={"trainer": OwnSteps, "activation_dim": 16, "dict_size": 32, "steps": 3, "seed": 0}
    ),
    "trainSAE that saves": lambda p: train(save_dir=p.new(), checkpoint_steps=2),
    "trainSAE that evaluates": lambda p: train(evaluate_every=2, evaluation_data=ROWS[3:]),
    **{f"update of {name}": lambda p, name=name: by_hand(name) for name in TRAINERS if name != "end_to_end"},
    "evaluate_dictionaries": lambda p: evaluate_dictionaries(
        p.model, Candidate("a", p.dictionary), p.texts, EvaluationConfig(n_tokens=200, n_fidelity_tokens=60, ctx_len=16)
    ),
    "evaluate_activations": lambda p: evaluate_activations(p.dictionary, ROWS),
    "ActivationBuffer": lambda p: [next(b) for b in [p.buffer()] for _ in range(3)],
    "ActivationCache": lambda p: next(ActivationCache(p.folder / "cache", out_batch_size=32)),
    "ContextStream": lambda p: next(ContextStream(p.texts, p.model, SITE, ctx_len=16, batch_size=4)),
    "write_cache": written,
    "load_dictionary": lambda p: load_dictionary(p.folder / "saved"),
    "save_dictionary": saved,
    "load_model": lambda p: load_model(p.folder / "model", device="cpu").capture(IDS, sites=SITE)[SITE],
    "generate": lambda p: generate(p.model, IDS, max_new_tokens=3).input_ids,
    "read_latents": lambda p: read_latents(p.model, p.dictionary, IDS),
    "attribute": lambda p: attribute(p.model, [p.dictionary], IDS, log_probability(5)),
}


def plain(value):
    """Returns the tensors and numbers of a result, in one order."""
    if isinstance(value, torch.nn.Module):
        return plain(dict(value.state_dict()))
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [one for _, inside in sorted(value.items(), key=lambda pair: str(pair[0])) for one in plain(inside)]
    if isinstance(value, list | tuple):
        return [one for inside in value for one in plain(inside)]
    if hasattr(value, "__dict__"):
        return plain({name: one for name, one in vars(value).items() if not name.startswith("_")})
    return [torch.tensor(value)] if isinstance(value, float) else []


@pytest.mark.parametrize("entry", ENTRIES)
def test_results_do_not_depend_on_what_the_caller_has_set(place, entry):
    expected = plain(ENTRIES[entry](place))
    assert expected
    for name, entered in (STATES if entry.startswith("update of") else AROUND).items():
        with entered():
            before = state()
            found = ENTRIES[entry](place)
            assert state() == before, name
        found = plain(found)
        assert len(found) == len(expected), name
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num()), name
            assert not a.is_inference(), name


@pytest.mark.parametrize("name", STATES)
def test_what_was_made_in_one_state_goes_on_in_another(place, name):
    rows = torch.stack(ROWS)
    expected, batches = plain(train()), plain([next(b) for b in [place.buffer()] for _ in range(6)])
    with STATES[name]():
        buffer, trainer = place.buffer(), TRAINERS["top_k"].Config(k=4, dict_size=32).build(activation_dim=16, steps=3)
        found = [next(buffer) for _ in range(2)]
        trainer.update(0, rows[0])
        given = list(rows.clone())  # under inference_mode, inference tensors
    found += [next(buffer) for _ in range(2)]
    trainer.update(1, rows[1])
    with STATES[name]():
        found += [next(buffer) for _ in range(2)]
        trainer.update(2, rows[2])
    assert all(torch.equal(a, b) for a, b in zip(plain(found), batches, strict=True))
    same = TRAINERS["top_k"].Config(k=4, dict_size=32).build(activation_dim=16, steps=3)
    for step, x in enumerate(rows[:3]):
        same.update(step, x)
    assert all(torch.equal(a, b) for a, b in zip(plain(trainer.export()), plain(same.export()), strict=True))
    if name != "device":
        assert all(torch.equal(a, b) for a, b in zip(plain(train(given)), expected, strict=True))


def test_data_are_read_without_gradients_where_the_caller_wants_none():
    def data(weight):
        for x in ROWS:
            seen.append(torch.is_grad_enabled())
            yield x * weight

    weight, seen = torch.ones((), requires_grad=True), []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            train(data(weight))
    assert seen and not any(seen)
    assert weight.grad is None


def test_a_module_follows_the_defaults_as_those_of_pytorch_do():
    with default_dtype(torch.float64):
        assert AutoEncoder(8, 16).W_dec.dtype == torch.float64
    with torch.device("meta"):
        assert AutoEncoder(8, 16).W_dec.device.type == "meta"


def test_the_last_of_several_threads_puts_the_default_dtype_back():
    inside, may_end = threading.Event(), threading.Event()

    def other():
        with usual_state():
            inside.set()
            may_end.wait()
            found.append(torch.get_default_dtype())

    found = []
    with default_dtype(torch.float64):
        with usual_state():
            thread = threading.Thread(target=other)
            thread.start()
            inside.wait()
        may_end.set()
        thread.join()
        assert found == [torch.float32]
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize("size", [64, 16_384])  # by different operations
@pytest.mark.parametrize("name", ["float64", "bfloat16", "device"])
def test_a_dictionary_computes_the_same_with_other_defaults(name, size):
    d = AutoEncoderTopK(tiny.DIM, size, k=4, generator=torch.Generator().manual_seed(0))

    def computed():
        latents = d.encode(ROWS[0])
        return [latents.detach(), d.decode(latents).detach(), d(ROWS[0]).detach()]

    expected = computed()
    with STATES[name]():
        found = computed()
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))
