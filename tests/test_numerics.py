"""What is not finite, or enormous, is told with its place and answered by policy; nothing bad is ever saved."""

import json
import warnings

import pytest
import torch

from dictionary_learning import load_dictionary, trainSAE
from dictionary_learning.errors import ConfigError, DataError, DictionaryLearningError, DivergenceError
from dictionary_learning.trainers import TRAINERS
from dictionary_learning.trainers._spikes import LossGuard
from tests.contracts.test_paths import METHODS, options_of
from tests.contracts.test_trainers import family
from tests.tiny import Planted

STEPS = 8


def good(n: int = STEPS, rows: int = 64) -> list[torch.Tensor]:
    return list(Planted().batches(n, rows))


def changed(batches: list[torch.Tensor], change, at=range(STEPS)) -> list[torch.Tensor]:
    return [change(x.clone()) if number in at else x for number, x in enumerate(batches)]


def one(value: float):
    def change(x: torch.Tensor) -> torch.Tensor:
        x[3] = value
        return x

    return change


DATA = {
    "float16": lambda: [x.half() for x in good()],
    "bfloat16": lambda: [x.bfloat16() for x in good()],
    "float64": lambda: [x.double() for x in good()],
    "one row of norm 1e4": lambda: changed(good(), one(1e4)),
    "one row of norm 1e8": lambda: changed(good(), one(1e8)),
    "one row near the largest number": lambda: changed(good(), one(3e38)),
    "a NaN in each batch": lambda: changed(good(), one(torch.nan)),
    "an infinity in each batch": lambda: changed(good(), one(-torch.inf)),
    "a batch of NaN": lambda: changed(good(), lambda x: x * torch.nan, (4,)),
    "a first batch of NaN": lambda: changed(good(), lambda x: x * torch.nan, (0,)),
    "a batch times 1e30": lambda: changed(good(), lambda x: x * 1e30, (4,)),
    "times 1e-30": lambda: [x * 1e-30 for x in good()],
    "times 1e15": lambda: [x * 1e15 for x in good()],
    "times 1e30": lambda: [x * 1e30 for x in good()],
    "all NaN": lambda: [x * torch.nan for x in good()],
    "zeros": lambda: [x * 0 for x in good()],
    "a constant": lambda: [torch.ones_like(x) for x in good()],
    "one row": lambda: good(rows=1),
    "two rows": lambda: good(rows=2),
    "an empty batch": lambda: changed(good(), lambda x: x[:0], (4,)),
    "a first batch that is empty": lambda: changed(good(), lambda x: x[:0], (0,)),
    "only empty batches": lambda: changed(good(), lambda x: x[:0]),
    "batches of unequal size": lambda: [x[: 1 + 9 * n] for n, x in enumerate(good())],
}
ORDINARY = {"float16", "bfloat16", "float64", "a constant", "one row", "two rows", "batches of unequal size"}
"""Data on which every method must train."""
VARIANTS = [{}, {"grad_acc_steps": 2, "ema_decay": 0.9}]


def shown(name: str, kind: str, further: dict) -> set:
    """Every method, every kind of data with every family, and both with either variant."""
    return {(family(name), kind), (name, str(further)), (kind, str(further))}


@pytest.mark.parametrize("further", VARIANTS, ids=["plain", "accumulated"])
@pytest.mark.parametrize("kind", list(DATA))
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.covering(shows=shown)
def test_whatever_the_data_only_finite_dictionaries_are_saved_and_returned(name, kind, further, tmp_path):
    config = TRAINERS[name].Config(**options_of(TRAINERS[name].Config), **further)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trained = trainSAE(DATA[kind](), config, STEPS, save_dir=tmp_path, progress=False, device="cpu")
    except DictionaryLearningError as error:
        assert kind not in ORDINARY, error
        trained = getattr(error, "dictionaries", [])
    for dictionary in trained:
        assert all(t.isfinite().all() for t in dictionary.parameters())
    for path in tmp_path.glob("trainer_*"):
        loaded = load_dictionary(path)
        assert all(t.isfinite().all() for t in loaded.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_bad_batch_costs_no_more_than_its_step(name, tmp_path):
    """The weights before it and after it are the same, and others follow."""
    config = TRAINERS[name].Config(**options_of(TRAINERS[name].Config))
    for bad in (torch.nan, torch.inf):
        with_it = changed(good(5), lambda x, bad=bad: x * bad, (3,))
        (trained,) = trainSAE(with_it, config, 5, progress=False, device="cpu")
        assert all(p.isfinite().all() for p in trained.parameters())
        x = Planted(seed=3).batch(64)
        assert trained(x).isfinite().all()


CONFIG = {"trainer": "top_k", "k": 3, "dict_size": 96}
BAD = {"a NaN token": one(torch.nan), "a gradient": lambda x: x * 1e25}


class Sampled(list):
    """Batches whose sample, by which dictionaries are initialized, is always the same."""

    def sample(self, n: int) -> torch.Tensor:
        return Planted(seed=5).batch(256)


def run(data, configs=CONFIG, steps=STEPS, **options):
    return trainSAE(data, configs, steps, progress=False, device="cpu", **options)


@pytest.mark.parametrize("bad", list(BAD))
def test_where_it_was_is_told(bad, caplog):
    configs = [CONFIG, {"trainer": "standard", "dict_size": 96}]
    run(changed(good(), BAD[bad], (4,)), configs)
    told = [record.getMessage() for record in caplog.records if "so far" in record.getMessage()]
    assert any("Step 5 (320 tokens), 'top_k" in message and "so far 1 " in message for message in told)
    assert any("'standard" in message for message in told)
    assert len(told) == 2  # once for each dictionary


def test_warnings_become_rare(caplog):
    run(changed(good(32), one(torch.nan), range(32)), steps=32)
    told = [record.getMessage() for record in caplog.records if "so far" in record.getMessage()]
    assert [message.split("so far ")[1].split()[0] for message in told] == ["1", "2", "4", "8", "16", "32"]


@pytest.mark.parametrize("bad", list(BAD))
def test_stop_ends_the_run_and_keeps_the_dictionaries(bad, tmp_path):
    with pytest.raises(DivergenceError, match="after step 5 of 8: 'top_k") as raised:
        run(changed(good(), BAD[bad], (4,)), on_anomaly="stop", save_dir=tmp_path)
    (kept,) = raised.value.dictionaries
    loaded = load_dictionary(tmp_path / "trainer_0")
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), loaded.parameters(), strict=True))
    assert loaded.info.config["trained"] == {"step": 5, "steps": 8}


def test_rollback_goes_on_from_the_checkpoint_with_the_data_after_it(tmp_path, caplog):
    data = good(12)
    bad = changed(data, BAD["a gradient"], (5,))
    (rolled,) = run(Sampled(bad), steps=8, on_anomaly="rollback", checkpoint_steps=4, save_dir=tmp_path / "a")
    # step 6 is bad: back to step 4, and batches 7 to 10 make steps 5 to 8
    (expected,) = run(Sampled([*data[:4], *data[6:10]]), steps=8)
    assert all(torch.equal(a, b) for a, b in zip(rolled.parameters(), expected.parameters(), strict=True))
    assert "rolled back to the checkpoint of step 4" in caplog.text
    assert rolled.info.config["trained"] == {"step": 8, "steps": 8}


def test_rollbacks_that_do_not_help_end_the_run(tmp_path):
    bad = changed(good(12), BAD["a gradient"], range(4, 12))
    with pytest.raises(DivergenceError, match="3 rollbacks to step 4 did not help"):
        run(Sampled(bad), steps=8, on_anomaly="rollback", checkpoint_steps=4, save_dir=tmp_path)
    assert load_dictionary(tmp_path / "trainer_0")(Planted().batch(3)).isfinite().all()


def test_policies_are_checked():
    with pytest.raises(ConfigError, match="checkpoint_steps"):
        run(good(), on_anomaly="rollback")


def test_a_run_in_which_nothing_moves_any_more_is_given_up(tmp_path):
    bad = changed(good(140), BAD["a gradient"], range(5, 140))
    with pytest.raises(DivergenceError, match="after step 106 of 140"):
        run(Sampled(bad), steps=140, save_dir=tmp_path)
    assert load_dictionary(tmp_path / "trainer_0").info.config["trained"]["step"] == 106


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_that_jumps_makes_no_step(name):
    config = TRAINERS[name].Config(**options_of(TRAINERS[name].Config), max_loss_ratio=8.0)
    trainer = config.build(activation_dim=32, steps=40, device="cpu")
    data = Planted()
    for x in data.batches(25, 64):
        trainer.update(trainer.step, x)
    before = {name: p.clone() for name, p in trainer.dictionary.named_parameters()}
    assert trainer.optimizer.n_skipped == 0
    trainer.update(trainer.step, 100 * data.batch(64))
    assert trainer.optimizer.n_skipped == 1
    for name, p in trainer.dictionary.named_parameters():
        torch.testing.assert_close(p, before[name], rtol=0, atol=1e-6)  # rows are normalized again
    trainer.update(trainer.step, data.batch(64))
    assert trainer.optimizer.n_skipped == 1
    assert any(not torch.equal(before[name], p) for name, p in trainer.dictionary.named_parameters())


def test_the_guard_follows_a_loss_that_stays_high():
    guard = LossGuard(3.0, torch.device("cpu"))
    guard.mean, guard._n = torch.tensor(1.0), 100
    n_skipped = 0
    for _ in range(200):
        loss = torch.tensor(10.0)
        n_skipped += int(guard.factor(loss).isnan())
        guard.mean = guard.mean.lerp(loss.minimum(3.0 * guard.mean), 0.02)
    assert 10 < n_skipped < 60


def test_patience_ends_a_run_that_no_longer_improves_and_resumes(tmp_path, caplog):
    x = Planted().batch(64)
    options = {"patience": 3, "log_steps": 1, "checkpoint_steps": 2, "keep_checkpoints": 99}
    config = {**CONFIG, "lr": 0.0}
    run([x] * 50, config, 50, save_dir=tmp_path / "a", **options)
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 4 and len(lines) == 4
    assert "No FVU improved in 3 logs: the run ends after step 4 of 50" in caplog.text
    for step in (3, 4):
        for path in (tmp_path / "a" / "checkpoints").glob(f"step_{step}"):
            path.rename(tmp_path / f"removed_{step}")
    run([x] * 50, config, 50, save_dir=tmp_path / "a", resume="auto", **options)
    assert json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4


class Fails:
    """Data that raise in the middle."""

    def __init__(self, error: Exception):
        self.error = error

    def __iter__(self):
        for number, x in enumerate(good(41, 1024)):  # a sample of 32,768 rows is read first
            if number == 40:
                raise self.error
            yield x


@pytest.mark.parametrize(
    "error", [ValueError("odd"), OSError("gone"), RuntimeError("CUDA out of memory"), MemoryError()]
)
def test_data_that_raise_cost_no_dictionary(error, tmp_path, caplog):
    with pytest.raises(DataError) as raised:
        run(Fails(error), steps=50, save_dir=tmp_path)
    assert load_dictionary(tmp_path / "trainer_0").info.config["trained"] == {"step": 40, "steps": 50}
    assert raised.value.__cause__ is error and "the dictionaries as they are were saved" in caplog.text


def test_a_step_that_raises_costs_no_dictionary(tmp_path, monkeypatch):
    cls = TRAINERS["top_k"]
    after = cls.after_step

    def failing(self, parts):
        if self.step == 6:
            raise ZeroDivisionError
        after(self, parts)

    monkeypatch.setattr(cls, "after_step", failing)
    with pytest.raises(ZeroDivisionError):
        run(good(), save_dir=tmp_path)
    assert load_dictionary(tmp_path / "trainer_0")(Planted().batch(3)).isfinite().all()
