"""What is evaluated while a run trains changes no bit of it, is what an evaluation of its own finds, and costs no run."""

import json
import logging
import math
import random
import signal
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dictionary_learning import (
    ActivationBuffer,
    ContextStream,
    EvaluationConfig,
    evaluate_activations,
    evaluate_dictionaries,
    load_dictionary,
    load_model,
    trainSAE,
    write_cache,
)
from dictionary_learning._best import Best, criterion
from dictionary_learning._disk import sha256_of
from dictionary_learning._random_state import kept_random_state
from dictionary_learning._run_setup import _read_config
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.cli import main
from dictionary_learning.cli._options import CaptureArguments
from dictionary_learning.data import TokenStream, as_source
from dictionary_learning.errors import ConfigError, DivergenceError, Interrupted, UnknownNameError
from dictionary_learning.evaluation import Candidate
from dictionary_learning.loggers import (
    Evaluated,
    JSONLLogger,
    LoggerGroup,
    TensorBoardLogger,
    WandbLogger,
    read_history,
)
from dictionary_learning.trainers import TRAINERS
from tests import tiny
from tests.contracts.test_paths import METHODS, options_of
from tests.contracts.test_trainers import family
from tests.contracts.test_wirings import SITES, batches
from tests.test_resume import StopAfter, check_resumes, files
from tests.tiny import Planted

STEPS = 12
CONFIG = {"trainer": "top_k", "k": 3, "dict_size": 96}
SITE = "model.layers.1"
BUFFER = {"n_ctxs": 8, "ctx_len": 16, "refresh_batch_size": 4, "out_batch_size": 32, "end_of_data": "repeat"}
SMALL = EvaluationConfig(n_tokens=128, n_fidelity_tokens=64, ctx_len=16, batch_size=4)


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model(), tokenizer=tiny.tokenizer())


def planted(seed: int = 0) -> list[torch.Tensor]:
    return list(Planted(seed=seed).batches(STEPS, 64))


def held(n: int = 3) -> list[torch.Tensor]:
    data = Planted()
    data.generator.manual_seed(99)  # other tokens of the same features
    return list(data.batches(n, 64))


def run(config=CONFIG, data=None, **options):
    given = {"progress": False, "device": "cpu", **options}
    return trainSAE(planted() if data is None else data, config, STEPS, **given)


def assert_same_bits(ones, others) -> None:
    for one, other in zip(ones, others, strict=True):
        for (name, tensor), (_, same) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
            assert torch.equal(tensor, same), name


class Draws:
    """A metric that draws from every generator, as a careless plug-in may."""

    def __call__(self, *_):
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002


FURTHER = [(name, {}) for name in METHODS]
FURTHER += [
    ("top_k", {"ema_decay": 0.9}),
    ("top_k", {"optimizer": "adam_schedule_free"}),
    ("gated", {"grad_acc_steps": 5}),
]


@pytest.mark.parametrize("way", ["typed", "by name"])
@pytest.mark.parametrize(("name", "further"), FURTHER, ids=str)
# every method; and in both ways every family, since a config is read before anything is trained
@pytest.mark.covering(shows=lambda name, further, way: {(name, str(further)), (family(name), way)})
def test_no_bit_of_any_method_changes(name, further, way, tmp_path):
    cls = TRAINERS[name]
    options = {**options_of(cls.Config), **further}
    plain = run(cls.Config(**options), save_dir=tmp_path / "plain", log_steps=1)
    config = cls.Config(**options) if way == "typed" else {"trainer": name, **options}
    seen = {"evaluate_every": 2, "evaluation_data": held(), "save_best": "fvu"}
    found = run(config, save_dir=tmp_path / "seen", log_steps=1, **seen)
    assert_same_bits(plain, found)
    ours, theirs = files(tmp_path / "plain"), files(tmp_path / "seen")
    for file, content in ours.items():
        if file.startswith("trainer_"):
            assert theirs[file] == content, file


@pytest.mark.parametrize("wiring", SITES)
def test_no_bit_of_any_wiring_changes(wiring):
    config = {"trainer": "batch_top_k", "k": 3, "dict_size": 96, "wiring": wiring, "normalize": "unit_mean_square"}
    if wiring == "heads":
        config["n_heads"] = 2
    plain = run(config, batches(wiring, STEPS, 64))
    seen = Seen()
    found = run(
        config, batches(wiring, STEPS, 64), evaluate_every=5, evaluation_data=batches(wiring, 2, 64), loggers=[seen]
    )
    assert_same_bits(plain, found)
    assert [step for step, _ in seen.lines] == [5, 10, 12]
    (last,) = seen.lines[-1][1].values()
    assert 0 < last.figures["eval/fvu"] < 2 and last.figures["eval/n_tokens"] == 128


class Seen:
    """Keeps what it is given, and draws random numbers."""

    def __init__(self):
        self.lines = []

    def log(self, figures, step, tokens) -> None: ...

    def log_evaluation(self, evaluated, step, tokens) -> None:
        Draws()()
        self.lines.append((step, evaluated))

    def close(self) -> None: ...


@pytest.mark.parametrize("options", [{}, {"prefetch": 1}, {"retrace": True}], ids=str)
def test_no_bit_of_live_activations_changes_and_figures_are_those_of_an_evaluation(model, options):
    configs = [CONFIG, {"trainer": "standard", "dict_size": 48, "grad_acc_steps": 2, "resample_steps": 4}]
    source = as_source(tiny.documents(40))
    rest, text = source.hold_out(3)

    def buffer():
        return ActivationBuffer(rest.fresh(), model, SITE, **BUFFER, **options)

    def numbers():
        return torch.rand(2).tolist(), np.random.rand()  # noqa: NPY002

    def seed():
        torch.manual_seed(3), np.random.seed(3)  # noqa: NPY002

    seed()
    plain, after = run(configs, buffer()), numbers()
    seed()
    seen, data = Seen(), buffer()
    found = run(configs, data, evaluate_every=4, evaluation_data=text, evaluation=SMALL, loggers=[seen])
    assert numbers() == after
    assert_same_bits(plain, found)
    names = list(seen.lines[-1][1])
    candidates = [Candidate(name, one, SITE) for name, one in zip(names, found, strict=True)]
    report = evaluate_dictionaries(
        model, candidates, text, SMALL, token_filter=data.filter, norm_limits=data.norm_limits
    )
    for entry in report["dictionaries"]:
        one = seen.lines[-1][1][entry["name"]]
        for key, value in entry["metrics"].items():
            assert one.figures[f"eval/{key}"] == pytest.approx(value, nan_ok=True), key
        assert one.density == entry["density"]
        assert one.figures["eval/n_dead"] == entry["dict_size"] - entry["metrics"]["n_alive"]
        assert one.figures["eval/ce_clean"] == pytest.approx(report["ce_clean"])
        assert one.figures["eval/ce_zero"] == pytest.approx(report["ablation"][f"{SITE}:out"]["ce_zero"])
        assert one.figures["eval/frac_variance_explained"] == pytest.approx(1 - one.figures["eval/fvu"])


def test_random_numbers_are_put_back():
    """Python's too, from which beartype draws in tests, so that whole runs cannot be compared."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with pytest.raises(ValueError, match="x"), kept_random_state():
        Draws()()
        raise ValueError("x")
    assert random.getstate() == before[1]
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002


def test_activations_are_measured_as_by_evaluate_activations():
    seen = Seen()
    spoilt = [x.clone() for x in held()]
    spoilt[0][3] = float("nan")
    (found,) = run(evaluate_every=STEPS, evaluation_data=spoilt, loggers=[seen])
    by_hand = evaluate_activations(found, spoilt)
    (one,) = seen.lines[0][1].values()
    for key, value in by_hand.items():
        if key != "n_tokens_nonfinite":
            assert one.figures[f"eval/{key}"] == pytest.approx(value), key
    seen_less = Seen()
    run(
        evaluate_every=STEPS,
        evaluation_data=iter(held(9)),
        evaluation=EvaluationConfig(n_tokens=100),
        loggers=[seen_less],
    )
    assert next(iter(seen_less.lines[0][1].values())).figures["eval/n_tokens"] == 100


@pytest.mark.parametrize("method", ["end_to_end", "temporal"])
def test_methods_of_whole_contexts_are_evaluated(model, method):
    def stream():
        return ContextStream(tiny.documents(30), model, SITE, ctx_len=16, batch_size=2, end_of_data="repeat")

    config = TRAINERS[method].Config(**options_of(TRAINERS[method].Config))
    seen = Seen()
    held_text = tiny.documents(20, seed=5)
    found = run(config, stream(), evaluate_every=6, evaluation_data=held_text, evaluation=SMALL, loggers=[seen])
    assert_same_bits(run(config, stream()), found)
    assert len(seen.lines) == 2 and all("eval/ce_recovered_zero" in one.figures for one in seen.lines[0][1].values())


def test_a_cache_is_evaluated_with_a_model_or_on_another_cache(model, tmp_path):
    for name, seed in (("a", 0), ("b", 7)):
        write_cache(tmp_path / name, tiny.documents(40, seed=seed), model, SITE, ctx_len=16, refresh_batch_size=4)

    def cache(name="a"):
        return ActivationCache(tmp_path / name, out_batch_size=32, end_of_data="repeat")

    seen, text = Seen(), tiny.documents(20, seed=5)
    plain = run(data=cache())
    stream = ContextStream(text, model, SITE, ctx_len=16, batch_size=2)
    for data in (stream, cache("b")):
        seen = Seen()
        options = {"evaluate_every": 5, "evaluation_data": data, "evaluation": SMALL}
        assert_same_bits(plain, run(data=cache(), **options, loggers=[seen]))
        figures = [next(iter(found.values())).figures for _, found in seen.lines]
        assert len(figures) == 3 and all(("eval/kl" in one) == (data is stream) for one in figures)
        # each evaluation reads the same tokens
        assert len({one["eval/n_tokens"] for one in figures}) == 1 and figures[0]["eval/fvu"] != figures[1]["eval/fvu"]


def test_contexts_are_as_long_as_those_of_training(model, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "dictionary_learning._held_out_data.evaluate_dictionaries", lambda *given, **_: asked.append(given[3]) or 1 / 0
    )
    run(
        data=ActivationBuffer(tiny.documents(30), model, SITE, **BUFFER),
        evaluate_every=6,
        evaluation_data=["w1 w2"] * 9,
    )
    assert [one.ctx_len for one in asked] == [16, 16]


def test_a_failure_costs_a_warning(model, caplog, monkeypatch):
    calls = []

    def fails(*_, **__):
        calls.append(1)
        Draws()()
        raise RuntimeError("out of everything")

    monkeypatch.setattr("dictionary_learning._held_out_data.HeldOutActivations.evaluate", fails)
    found = run(evaluate_every=4, evaluation_data=held())
    assert len(calls) == 3 and "after step 4 failed (RuntimeError: out of everything)" in caplog.text
    assert_same_bits(run(), found)


def test_one_that_diverged_costs_the_others_no_figures(tmp_path, monkeypatch):
    from dictionary_learning._run_setup import TrainingJob

    export = TrainingJob.export

    def spoilt(job):
        found = export(job)
        if job.name == "top_k-5":
            found.b_dec.data[0] = float("nan")
        return found

    seen = Seen()
    with monkeypatch.context() as patch, pytest.raises(DivergenceError):
        patch.setattr(TrainingJob, "export", spoilt)
        options = {"evaluate_every": 6, "evaluation_data": held(), "loggers": [seen]}
        run([{**CONFIG, "k": 5}, CONFIG], save_dir=tmp_path, save_best="fvu", **options)
    assert [list(found) for _, found in seen.lines] == [["top_k-3"]] * 2
    assert [path.parent.name for path in tmp_path.glob("trainer_*/best")] == ["trainer_1"]


@pytest.mark.parametrize("save_best", ["fvu", "frac_variance_explained", {"l0": "lower"}, "l2_ratio"], ids=str)
def test_the_best_is_a_whole_dictionary_of_its_step(save_best, tmp_path):
    options = {"evaluate_every": 2, "evaluation_data": held(), "save_steps": range(2, STEPS + 1, 2)}
    configs = [CONFIG, {"trainer": "jump_relu", "dict_size": 48, "lr": 3e-2}]
    found = run(configs, save_dir=tmp_path, save_best=save_best, **options)
    said = json.loads((tmp_path / "run.json").read_text())
    metric = save_best if isinstance(save_best, str) else "l0"
    for number, dictionary in enumerate(found):
        folder = tmp_path / f"trainer_{number}"
        history = read_history(tmp_path / "metrics.jsonl", dictionary.info.name)
        values = {line["step"]: line[f"eval/{metric}"] for line in history if f"eval/{metric}" in line}
        assert list(values) == [2, 4, 6, 8, 10, 12]
        rank = {"frac_variance_explained": lambda v: -v, "l2_ratio": lambda v: abs(v - 1)}.get(metric, lambda v: v)
        step = min(values, key=lambda s: rank(values[s]))
        best = load_dictionary(folder / "best")
        assert best.info.config["best"]["step"] == step == best.info.config["trained"]["step"]
        assert best.info.config["best"]["value"] == values[step] and best.info.name == dictionary.info.name
        assert_same_bits([load_dictionary(folder / "checkpoints" / f"step_{step}")], [best])
        assert said["best"][f"trainer_{number}"]["step"] == step
        assert "best" not in json.loads((folder / "config.json").read_text())
        assert evaluate_activations(best, held())[metric] == pytest.approx(values[step])
    assert not list(tmp_path.glob("trainer_*/.best*"))


@pytest.mark.parametrize("format", ["own", "dictionary_learning", "sae_lens", "sparsify"])
def test_the_best_is_in_the_format_of_the_run(format, tmp_path):
    data = lambda: ActivationBuffer(tiny.documents(30), load_model(tiny.model("gpt2"), tokenizer=tiny.tokenizer()), "transformer.h.1", **BUFFER)  # noqa: E731 # fmt: skip
    options = {"evaluate_every": 4, "evaluation_data": tiny.documents(20, seed=5), "evaluation": SMALL}
    run(data=data(), save_dir=tmp_path / "steps", save_steps=[4, 8, 12], **options)
    run(data=data(), save_dir=tmp_path / "run", save_format=format, save_best={"fvu": "higher"}, **options)
    folder = tmp_path / "run" / "trainer_0"
    history = read_history(tmp_path / "run" / "metrics.jsonl", "top_k-3")
    step = max((line for line in history if "eval/fvu" in line), key=lambda line: line["eval/fvu"])["step"]
    assert step != STEPS  # what is kept is not the last step, which is beside it
    best, then = load_dictionary(folder / "best"), load_dictionary(tmp_path / "steps" / "trainer_0" / f"checkpoints/step_{step}")  # fmt: skip
    assert best.info.format == load_dictionary(folder).info.format == format
    x = torch.randn(32, tiny.DIM, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(best(x), then(x))
    weights = [path for path in (folder / "best").iterdir() if path.suffix in (".pt", ".safetensors")]
    assert [path.name for path in weights] == [path.name for path in folder.iterdir() if path.suffix in (".pt", ".safetensors")]  # fmt: skip
    said = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (said["best"]["trainer_0"]["step"], said["best"]["trainer_0"]["sha256"]) == (step, sha256_of(weights[0]))
    assert said["dictionaries"] == {"trainer_0": sha256_of(folder / weights[0].name)}
    beside = folder / "best" / "best.json"
    facts = best.info.config["best"] if format == "own" else json.loads(beside.read_text())
    assert (facts["step"], facts["metric"], beside.is_file()) == (step, "fvu", format != "own")


def test_the_best_of_an_own_class_is_kept_as_its_end_is(tmp_path):
    from tests.compat.test_dictionary_learning import FORM, MyTopK

    config = {"trainer": "top_k", "dict_class": MyTopK, "k": 4, **FORM}
    data = {"data": list(tiny.Planted().batches(STEPS, 64)), "evaluation_data": list(tiny.Planted(seed=2).batches(2, 64))}  # fmt: skip
    (ae,) = run(config, save_dir=tmp_path, save_best={"fvu": "lower"}, evaluate_every=STEPS, **data)
    best = load_dictionary(tmp_path / "trainer_0" / "best")
    assert (tmp_path / "trainer_0" / "best" / "ae.pt").is_file()
    torch.testing.assert_close(best(held()[0]), ae(held()[0]))


def test_evaluations_and_the_best_resume_to_the_same_bytes(model, tmp_path):
    config = {"trainer": "top_k", "k": 3, "dict_size": 48, "lr": 2e-2}
    check_resumes(
        lambda: ActivationBuffer(tiny.documents(30), model, SITE, **BUFFER), config, tmp_path,
        evaluate_every=4, evaluation_data=tiny.documents(20, seed=5), evaluation=SMALL, save_best="ce_increase",
        stops=(5, 9),
    )  # fmt: skip
    assert "trainer_0/best/dictionary.safetensors" in files(tmp_path / "parts")


def test_a_resumed_run_may_ask_for_other_evaluations(tmp_path):
    with pytest.raises(Interrupted):
        run(
            save_dir=tmp_path,
            evaluate_every=2,
            evaluation_data=held(),
            save_best="fvu",
            loggers=[StopAfter(5, signal.SIGTERM)],
            log_steps=1,
        )
    run(save_dir=tmp_path, resume="auto", evaluate_every=3, evaluation_data=held(2), save_best="mse")
    assert load_dictionary(tmp_path / "trainer_0" / "best").info.config["best"]["metric"] == "mse"


def test_a_disk_that_fails_costs_the_best_and_not_the_run(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("dictionary_learning._best.save_whole", lambda *_: (_ for _ in ()).throw(OSError("full")))
    (found,) = run(save_dir=tmp_path, evaluate_every=6, evaluation_data=held(), save_best="fvu")
    assert caplog.text.count("could not be written (OSError: full)") == 2
    assert_same_bits([load_dictionary(tmp_path / "trainer_0")], [found])


def test_a_step_without_a_number_is_not_kept_and_said(tmp_path, caplog):
    best, (one,) = Best("ce_recovered_zero", "higher", tmp_path), run()
    best.offer([one], {0: {"ce_recovered_zero": math.nan}}, 4, 100)
    assert (
        not list(tmp_path.iterdir()) and "step 4 has no number for save_best='ce_recovered_zero' (nan)" in caplog.text
    )


def test_what_was_the_best_before_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    from dictionary_learning import _saving

    (one,) = run()
    _saving.save_whole(one, tmp_path / "best", {"best": {"step": 1}})
    monkeypatch.setattr(_saving, "replace_folder", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        _saving.save_whole(one, tmp_path / "best", {"best": {"step": 2}})
    assert load_dictionary(tmp_path / "best").info.config["best"] == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"evaluate_every": 2}, "give evaluation_data"),
        ({"evaluation_data": []}, "evaluation_data without evaluate_every"),
        ({"evaluation": SMALL}, "evaluation without evaluate_every"),
        ({"save_best": "fvu"}, "give evaluate_every"),
        ({"evaluate_every": 2, "evaluation_data": held, "save_best": "fvuu"}, "Did you mean 'fvu'"),
        ({"evaluate_every": 2, "evaluation_data": held, "save_best": "kl"}, "needs the model's predictions"),
        ({"evaluate_every": 2, "evaluation_data": held, "save_best": "l0"}, "Say what is meant"),
        ({"evaluate_every": 2, "evaluation_data": held, "save_best": {"l0": "best"}}, "give one metric"),
        ({"evaluate_every": 2, "evaluation_data": held, "save_best": "fvu", "save_dir": None}, "give save_dir"),
        ({"evaluate_every": 2, "evaluation_data": lambda: [torch.ones(4, 7)]}, "activations of the same sites"),
        ({"evaluate_every": 2, "evaluation_data": lambda: ["text"]}, "ContextStream"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_evaluated_is_refused_at_once(options, said, tmp_path):
    given = {name: value() if callable(value) else value for name, value in {"save_dir": tmp_path, **options}.items()}
    with pytest.raises((ConfigError, UnknownNameError, Exception), match=said) as error:
        run(**given)
    assert type(error.value).__module__ == "dictionary_learning.errors"


def test_training_data_are_no_held_out_data(model):
    data = ActivationBuffer(tiny.documents(30), model, SITE, **BUFFER)
    for given in (data, data.tokens):
        with pytest.raises(ConfigError, match="Got the training data as evaluation_data"):
            run(data=data, evaluate_every=2, evaluation_data=given)
    with pytest.raises(ConfigError, match="can be read only once"):
        run(data=data, evaluate_every=2, evaluation_data=iter(["w1 w2"]))
    with pytest.raises(ConfigError, match="contexts of 512 tokens, and"):
        run(data=data, evaluate_every=2, evaluation_data=["w1"], evaluation=EvaluationConfig(ctx_len=512))


def test_a_stream_of_contexts_is_read_from_where_it_was(model):
    stream = TokenStream(as_source(tiny.documents(20, seed=5)), tiny.tokenizer(), ctx_len=16)
    stream.take(2)
    seen, before = Seen(), stream.source.position
    data = ActivationBuffer(tiny.documents(30), model, SITE, **BUFFER)
    run({**CONFIG, "lr": 1e-9}, data, evaluate_every=4, evaluation_data=stream, loggers=[seen])
    figures = [next(iter(found.values())).figures for _, found in seen.lines]
    assert stream.source.position == before
    assert len({one["eval/ce_clean"] for one in figures}) == 1 and len({one["eval/n_tokens"] for one in figures}) == 1


EVALUATED = Evaluated(
    {"eval/fvu": 0.25, "eval/l0": 3.0, "eval/ce_recovered_zero": 0.9, "eval/ce_clean": 2.0, "eval/ce_zero": 12.0,
     "eval/ce_reconstructed": 3.0, "eval/kl": 1.0, "eval/kl_zero": 10.0},
    {"log10_edges": [-5.25, -5.0, -4.75], "counts": [3, 4], "n_never_fired": 2},
)  # fmt: skip


def test_loggers_write_evaluations(tmp_path):
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    group = LoggerGroup([JSONLLogger(tmp_path / "metrics.jsonl"), TensorBoardLogger(tmp_path / "tb"), Seen()])
    group.log({"a": {"fvu": 0.5}}, 10, 100)
    group.log_evaluation({"a": EVALUATED}, 10, 100)
    group.close()
    first, second = read_history(tmp_path / "metrics.jsonl", "a")
    assert "fvu" in first and second["eval/fvu"] == 0.25 and "fvu" not in second
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])
    assert line["density"] == {"a": dict(EVALUATED.density)}
    events = tensorboard.EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("a/eval/fvu")] == [(10, 0.25)]
    (histogram,) = events.Histograms("a/eval/log10_density")
    assert list(histogram.histogram_value.bucket) == [3, 4] and list(histogram.histogram_value.bucket_limit) == [
        -5.0,
        -4.75,
    ]


def test_a_logger_without_evaluations_gets_none_and_one_that_fails_is_switched_off(caplog):
    class Old:
        def log(self, figures, step, tokens): ...

        def close(self): ...

    class Fails(Old):
        def log_evaluation(self, evaluated, step, tokens):
            raise OSError("full")

    seen = Seen()
    group = LoggerGroup([Old(), Fails(), seen])
    for step in (1, 2):
        group.log_evaluation({"a": EVALUATED}, step, 10)
    assert caplog.text.count("failed at the evaluation of step 1 and is switched off") == 1 and len(seen.lines) == 2


def test_dashboards_of_other_packages_find_their_names(monkeypatch):
    logged = []

    class Run:
        id = "1"

        def log(self, values, step):
            logged.append((step, values))

        def finish(self): ...

    stand_in = types.ModuleType("wandb")
    stand_in.init = lambda **_: Run()
    stand_in.Histogram = lambda np_histogram: ("histogram", *np_histogram)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    sink = WandbLogger({"a": {}})
    sink.log({"a": {"fvu": 0.25, "l0": 3.0, "loss": 1.5, "lr": 1e-3, "dead_features": 4.0}}, 5, 50)
    sink.log_evaluation({"a": EVALUATED}, 10, 100)
    (step, trained), (later, evaluated) = logged
    assert (step, later) == (5, 10)
    # SAELens 3 to 6, and dictionary-learning: variance explained is 1 - FVU
    assert trained["metrics/explained_variance"] == trained["frac_variance_explained"] == 0.75
    assert (trained["metrics/l0"], trained["l0"], trained["losses/overall_loss"]) == (3.0, 3.0, 1.5)
    assert (trained["sparsity/dead_features"], trained["details/current_learning_rate"]) == (4.0, 1e-3)
    assert trained["details/n_training_tokens"] == trained["details/n_training_samples"] == 50
    assert evaluated["eval/fvu"] == 0.25 and evaluated["eval/log10_density"] == (
        "histogram",
        [3, 4],
        [-5.25, -5.0, -4.75],
    )
    for before in ("metrics/", "model_performance_preservation."):
        score = evaluated[f"{before}ce_loss_score"]
        lost, kept, none = (
            evaluated[f"{before}ce_loss_{which}"] for which in ("with_sae", "without_sae", "with_ablation")
        )
        assert (lost, kept, none) == (3.0, 2.0, 12.0) and score == (none - lost) / (none - kept)
    assert evaluated["metrics/kl_div_score"] == evaluated["model_behavior_preservation.kl_div_score"] == 0.9
    assert evaluated["sparsity/below_1e-5"] == 5 and evaluated["sparsity/below_1e-6"] == 2
    _, counts, edges = evaluated["plots/feature_density_line_chart"]
    assert counts[0] == 2 and sum(counts) == 9 and len(edges) == len(counts) + 1 and edges[0] < -10 < edges[1]
    assert sorted(edges) == edges


def test_console_says_what_was_found(caplog):
    from dictionary_learning.loggers import ConsoleLogger

    caplog.set_level(logging.INFO)
    ConsoleLogger(20, ["a"]).log_evaluation({"a": EVALUATED}, 10, 100)
    assert "held out, step 10: a: FVU 0.2500  L0 3.0  CE recovered (zero) 0.9000" in caplog.text
    harmless = {**EVALUATED.figures, "eval/ce_recovered_zero": math.nan, "eval/ce_zero": 1.0}
    ConsoleLogger(20, ["a"]).log_evaluation({"a": EVALUATED._replace(figures=harmless)}, 10, 100)
    assert "CE recovered (zero) nothing (zero ablation does not raise the cross-entropy)" in caplog.text


def test_every_metric_has_a_better_side_or_says_that_it_has_none():
    assert criterion("fvu", False) == ("fvu", "lower") and criterion("ce_recovered_zero", True)[1] == "higher"
    assert criterion({"anything": "higher"}, False) == ("anything", "higher")


@pytest.fixture
def shell(model, tmp_path, monkeypatch):
    monkeypatch.setattr(CaptureArguments, "load", lambda self, model_: model)
    monkeypatch.setattr("dictionary_learning.cli._evaluate.report_on", lambda *_: SimpleNamespace(show=print))
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in tiny.documents(60)))
    common = ["--n-tokens", "320", "--batch-size", "32", "--k", "3", "--dict-size", "64", "--device", "cpu"]
    common += ["--n-eval-tokens", "64", "--n-fidelity-tokens", "64"]
    reading = [
        "--ctx-len",
        "16",
        "--n-ctxs",
        "8",
        "--refresh-batch-size",
        "4",
        "--held-out-every",
        "5",
        "--sites",
        SITE,
    ]

    def command(folder: str, *words: str, cache: bool = False):
        source = [model.name, str(tmp_path / "text.jsonl")]
        options = ["--cache", str(tmp_path / "cache"), "--held-out-every", "5"] if cache else reading
        assert main(["train", *source, "--save-dir", str(tmp_path / folder), *options, *common, *words]) == 0
        return tmp_path / folder

    return command


def test_the_shell_evaluates_and_keeps_the_best(shell, model, tmp_path):
    words = ["--evaluate-every", "4", "--save-best", "ce_recovered_zero"]
    plain, folder = shell("plain"), shell("evaluated", *words)
    ones, others = (load_dictionary(at / "trainer_0") for at in (plain, folder))
    assert_same_bits([ones], [others])
    steps = [line["step"] for line in read_history(folder / "metrics.jsonl", others.info.name) if "eval/kl" in line]
    assert steps == [4, 8, 10]
    assert load_dictionary(folder / "trainer_0" / "best").info.config["best"]["metric"] == "ce_recovered_zero"
    write_cache(tmp_path / "cache", tiny.documents(60), model, SITE, ctx_len=16, refresh_batch_size=4)
    plain, folder = shell("plain on a cache", cache=True), shell("on a cache", *words, cache=True)
    assert_same_bits([load_dictionary(plain / "trainer_0")], [load_dictionary(folder / "trainer_0")])
    assert load_dictionary(folder / "trainer_0" / "best").info.config["best"]["step"] in (4, 8, 10)


def test_typed_configs_and_dictionaries_are_the_same():
    assert _read_config({**CONFIG})[0] == TRAINERS["top_k"].Config(k=3, dict_size=96)
