"""A run that is stopped and resumed, however often, ends in the bytes of one that never stopped."""

import json
import shlex
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import jaxtyping
import pytest
import torch

from dictionary_learning import ActivationBuffer, ContextStream, load_dictionary, load_model, trainSAE, write_cache
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.cli import STOPPED, main
from dictionary_learning.cli._options import CaptureArguments
from dictionary_learning.data import as_source, mix
from dictionary_learning.errors import CheckpointError, ConfigError, DataError, Interrupted
from dictionary_learning.loggers import JSONLLogger
from dictionary_learning.trainers import TRAINERS
from tests import tiny
from tests.contracts.test_paths import METHODS, options_of
from tests.contracts.test_wirings import SITES, batches
from tests.processes import run_script, start_script
from tests.tiny import Planted

STEPS = 12


class StopAfter:
    """A logger that asks for the run's end at a step, as the user's Ctrl-C does."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGINT):
        self.step, self.number = step, number

    def log(self, figures, step, tokens) -> None:
        if step == self.step:
            signal.raise_signal(self.number)

    def close(self) -> None:
        pass


def files(folder: Path) -> dict[str, bytes]:
    """Returns all that a run leaves but for its checkpoints and the times of its log."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith("checkpoints/"):
            content = path.read_bytes()
            if path.name == "metrics.jsonl":
                lines = [json.loads(line) for line in content.decode().splitlines()]
                content = json.dumps([{**line, "seconds": 0} for line in lines]).encode()
            if path.name == "run.json":
                content = json.dumps({**json.loads(content), "volatile": None}).encode()
            found[name] = content
    return found


def check_resumes(make_data, configs, tmp_path, stops=(2, 5, 9), steps=STEPS, **options) -> None:
    """Compares a run with one that is stopped after some steps, each time with new objects."""
    common = {"progress": False, "device": "cpu", "log_steps": 1, **options}
    trainSAE(make_data(), configs, steps, save_dir=tmp_path / "whole", **common)
    for stop in stops:
        with pytest.raises(Interrupted, match="stopped after step"):
            trainSAE(
                make_data(), configs, steps, save_dir=tmp_path / "parts", resume="auto", loggers=[StopAfter(stop)], **common
            )  # fmt: skip
    trainSAE(make_data(), configs, steps, save_dir=tmp_path / "parts", resume="auto", **common)
    whole, parts = files(tmp_path / "whole"), files(tmp_path / "parts")
    assert whole.keys() == parts.keys() and len(whole) >= 3
    for name, content in whole.items():
        assert parts[name] == content, name


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resumes(name, tmp_path):
    config = TRAINERS[name].Config(**options_of(TRAINERS[name].Config), ema_decay=0.9)
    check_resumes(lambda: list(Planted().batches(STEPS, 64)), config, tmp_path)


@pytest.mark.parametrize("wiring", SITES)
def test_every_wiring_resumes(wiring, tmp_path):
    config = {"trainer": "batch_top_k", "k": 3, "dict_size": 96, "wiring": wiring}
    if wiring == "heads":
        config["n_heads"] = 2
    check_resumes(lambda: batches(wiring, STEPS, 64), config, tmp_path)


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model(), tokenizer=tiny.tokenizer())


TWO = ["model.layers.0", "model.layers.1"]
BUFFER = {"n_ctxs": 8, "ctx_len": 16, "refresh_batch_size": 4, "out_batch_size": 32, "end_of_data": "repeat"}


@pytest.mark.parametrize(
    "options",
    [{}, {"prefetch": 2}, {"dtype": "int8", "pack": False}, {"retrace": True}, {"retrace": True, "prefetch": 1}],
    ids=str,
)
def test_live_activations_of_several_sites_and_methods_resume(model, tmp_path, options):
    configs = [
        {"trainer": "top_k", "k": 3, "dict_size": 48, "normalize": "unit_mean_square"},
        {"trainer": "standard", "dict_size": 48, "grad_acc_steps": 3, "resample_steps": 4},
        {"trainer": "jump_relu", "dict_size": 48, "normalize": "layer_norm", "grad_acc_steps": 2},
        {"trainer": "batch_top_k", "k": 3, "wiring": "crosscoder", "dict_size": 48},
    ]
    # 3 and 2 batches a step: whole steps of both end together every sixth batch
    check_resumes(
        lambda: ActivationBuffer(tiny.documents(30), model, TWO, **BUFFER, **options),
        configs,
        tmp_path,
        stops=(2, 7),
        steps=15,
    )


@pytest.mark.parametrize("options", [{}, {"retrace": True}, {"retrace": True, "prefetch": 2}], ids=str)
@pytest.mark.parametrize("kind", ["generator", "shuffled", "mixed"])
@pytest.mark.covering(shows=lambda kind, options: {kind, str(options)})
def test_text_that_is_read_once_is_given_anew_to_resume(model, tmp_path, kind, options):
    texts = tiny.documents(60)
    data = {
        "generator": lambda: (text for text in texts),
        "shuffled": lambda: as_source(iter(texts), shuffle_seed=3, shuffle_buffer=9),
        "mixed": lambda: mix([iter(texts), texts[::-1]], exhausted="continue"),
    }
    sizes = {**BUFFER, "end_of_data": "stop", "max_activation_norm_multiple": 2.0}
    config = {"trainer": "top_k", "k": 3, "dict_size": 48, "normalize": "unit_mean_square"}
    check_resumes(
        lambda: ActivationBuffer(data[kind](), model, TWO[0], **sizes, **options), config, tmp_path, stops=(2, 7)
    )


def test_rows_that_are_read_again_take_no_room_and_want_the_same_text(model, tmp_path):
    def state(documents, **options):
        buffer = ActivationBuffer(documents, model, TWO, **BUFFER, **options)
        for _ in range(9):
            next(buffer)
        return buffer, buffer.state_dict()

    texts = tiny.documents(30)
    (buffer, named), (_, held) = state(texts, retrace=True), state(texts)
    assert not named["rows"] and held["rows"]
    again = ActivationBuffer(texts, model, TWO, **BUFFER)  # it need not write what it reads
    again.load_state_dict(named)
    for _ in range(20):
        a, b = next(buffer), next(again)
        assert all(torch.equal(a[site], b[site]) for site in a)
    with pytest.raises((CheckpointError, DataError, ConfigError)):
        ActivationBuffer(["w1 w2"] * 30, model, TWO, **BUFFER).load_state_dict(named)
    with pytest.raises(ConfigError, match="retrace=False"):
        ActivationBuffer(texts, model, TWO, **BUFFER, retrace=True).load_state_dict(held)


def test_a_cache_resumes(model, tmp_path):
    write_cache(tmp_path / "cache", tiny.documents(40), model, TWO, ctx_len=16, refresh_batch_size=4)
    config = {"trainer": "top_k", "k": 3, "dict_size": 48}
    check_resumes(
        lambda: ActivationCache(tmp_path / "cache", out_batch_size=32, end_of_data="repeat"), config, tmp_path
    )


@pytest.mark.parametrize("method", ["end_to_end", "temporal"])
def test_contexts_resume(model, tmp_path, method):
    config = TRAINERS[method].Config(**options_of(TRAINERS[method].Config))
    check_resumes(
        lambda: ContextStream(tiny.documents(30), model, TWO[0], ctx_len=16, batch_size=2, end_of_data="repeat"),
        config, tmp_path, stops=(3,),
    )  # fmt: skip


def test_a_generator_is_read_again_up_to_where_it_was(tmp_path):
    config = {"trainer": "top_k", "k": 3, "dict_size": 96}
    check_resumes(lambda: (batch for batch in Planted().batches(STEPS, 64)), config, tmp_path)
    shorter = list(Planted().batches(4, 64))
    with pytest.raises(Interrupted):
        trainSAE(
            list(Planted().batches(STEPS, 64)), config, STEPS, save_dir=tmp_path / "short", loggers=[StopAfter(8)],
            log_steps=1, progress=False,
        )  # fmt: skip
    with pytest.raises(DataError, match="had used 8 batches, and the data end after 4"):
        trainSAE(shorter, config, STEPS, save_dir=tmp_path / "short", resume="auto", progress=False)


CONFIG = {"trainer": "top_k", "k": 3, "dict_size": 96}


def run(folder: Path, config=None, steps: int = STEPS, **options):
    data = list(Planted().batches(STEPS, 64))
    return trainSAE(data, config or CONFIG, steps, save_dir=folder, progress=False, device="cpu", **options)


def stopped(folder: Path, at: int = 5, number: signal.Signals = signal.SIGTERM) -> Path:
    with pytest.raises(Interrupted):
        run(folder, loggers=[StopAfter(at, number)], log_steps=1)
    return folder


def test_what_differs_from_the_checkpoints_run_is_named(tmp_path):
    folder = stopped(tmp_path)
    with pytest.raises(ConfigError, match="k: 3, now 4"):
        run(folder, {**CONFIG, "k": 4}, resume="auto")
    with pytest.raises(ConfigError, match="steps: 12, now 20"):
        run(folder, steps=20, resume="auto")
    with pytest.raises(ConfigError, match="another run"):
        run(folder, [CONFIG, CONFIG], resume="auto")
    with pytest.raises(ConfigError, match="not finished, at step 5 of 12"):
        run(folder)
    with pytest.raises(ConfigError, match="overwrite=True with resume='auto'"):
        run(folder, resume="auto", overwrite=True)
    (longer,) = run(folder, steps=9, resume="auto", allow_changed=["steps", "decay_start", "warmup_steps"])
    assert longer.info.config["trained"] == {"step": 9, "steps": 9}


def test_a_finished_run_that_is_resumed_is_returned_as_it_is(tmp_path):
    (first,) = run(tmp_path, checkpoint_steps=5)
    before = files(tmp_path)
    (again,) = run(tmp_path, checkpoint_steps=5, resume="auto")
    assert files(tmp_path) == before
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_the_newest_and_chosen_checkpoints_stay(tmp_path):
    run(tmp_path, checkpoint_steps=2, save_steps=[3], keep_checkpoints=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_10", "step_12", "step_3"]


def test_a_chosen_step_in_the_midst_of_an_accumulated_one_keeps_the_next(tmp_path):
    run(tmp_path, {**CONFIG, "grad_acc_steps": 2}, checkpoint_steps=4, save_steps=[3, 5], keep_checkpoints=1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_12", "step_4", "step_6"]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, checkpoint_steps=4, log_steps=1)
    with pytest.raises(Interrupted):
        run(parts, checkpoint_steps=4, log_steps=1, loggers=[StopAfter(10)])
    tensors = parts / "checkpoints" / "step_10" / "state.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    run(parts, checkpoint_steps=4, log_steps=1, resume="auto")
    assert "state.safetensors is missing, added or damaged" in caplog.text
    assert files(whole) == files(parts)
    for path in (parts / "checkpoints").glob("*/manifest.json"):
        path.write_text("{}")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        run(parts, resume="auto")


def test_a_checkpoint_under_another_name_gives_way(tmp_path, caplog):
    run(tmp_path / "whole", checkpoint_steps=4, log_steps=1)
    folder = stopped(tmp_path / "first")
    shutil.copytree(folder / "checkpoints" / "step_5", folder / "checkpoints" / "step_11")
    run(folder, checkpoint_steps=4, log_steps=1, resume="auto")
    assert "holds the checkpoint of step 5; it was renamed or copied" in caplog.text
    assert files(folder) == files(tmp_path / "whole")


@pytest.mark.parametrize("manifest", ["[" * 100_000, "{}", "1", "\0", ""])
def test_a_manifest_that_is_none_is_no_checkpoint(tmp_path, manifest):
    folder = stopped(tmp_path)
    for path in (folder / "checkpoints").glob("*/manifest.json"):
        path.write_text(manifest)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        run(folder, resume="auto")


CHANGED = {
    "dict_size": 48, "k": 2, "trainer": "batch_top_k", "optimizer": "signum", "seed": 7,
    "ema_decay": 0.9, "max_loss_ratio": 5.0, "lr": 1e-3, "beta1": 0.5, "auxk_alpha": 0.0, "resample_steps": 3,
    "k_anneal_steps": 4, "grad_acc_steps": 2, "micro_acc_steps": 2, "normalize": "unit_mean_square", "schedule": "constant",
    "unit_norm_decoder": False, "max_grad_norm": 1.0, "dead_feature_threshold": 5.0, "use_ghost_grads": True,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_what_is_allowed_to_change_is_taken_over_or_refused_by_name(tmp_path, name):
    folder = stopped(tmp_path)
    changed = {**CONFIG, name: CHANGED[name]}
    with pytest.raises(ConfigError, match="is of another run"):
        run(folder, changed, resume="auto")
    manifest = json.loads(next((folder / "checkpoints").glob("*/manifest.json")).read_text())
    everything = [*manifest["facts"], *manifest["facts"]["trainers"][0], "k_aux"]
    try:
        (longer,) = run(folder, changed, resume="auto", allow_changed=everything)
        assert longer.info.config["trained"] == {"step": STEPS, "steps": STEPS}
    except ConfigError as error:
        assert "does not fit what changed" in str(error) and "Start another run" in str(error)


def test_fewer_steps_than_were_made_are_refused(tmp_path):
    folder = stopped(tmp_path)
    with pytest.raises(ConfigError, match="written after step 5, and the run has 3 steps"):
        run(folder, steps=3, resume="auto", allow_changed=["steps", "decay_start", "warmup_steps"])


def test_what_a_killed_process_left_is_removed(tmp_path):
    folder = stopped(tmp_path / "parts")
    (folder / "trainer_0").mkdir(exist_ok=True)
    left = [folder / ".run.json.1.unfinished", folder / "trainer_0" / ".dictionary.safetensors.2.unfinished"]
    for path in left:
        path.write_text("{")
    (folder / "checkpoints" / ".step_12.3.unfinished").mkdir()
    run(folder, log_steps=1, resume="auto")
    run(tmp_path / "whole", log_steps=1)
    assert not [path for path in folder.rglob(".*") if path.name.endswith(".unfinished")]
    assert files(folder) == files(tmp_path / "whole")


def test_steps_that_end_together_after_the_run_only_are_refused(tmp_path):
    configs = [{**CONFIG, "grad_acc_steps": 3}, {**CONFIG, "grad_acc_steps": 5}]
    with pytest.raises(ConfigError, match="end a step together every 15 batches"):
        run(tmp_path, configs, checkpoint_steps=4)
    run(tmp_path / "none", configs)


def test_the_same_names_with_other_contents_are_another_run(model, tmp_path):
    """Documents in memory, a file and a model's weights are told by what they hold."""

    def resumed(text, model, **options):
        buffer = ActivationBuffer(text, model, TWO[1], ctx_len=16, n_ctxs=8, out_batch_size=32, device="cpu")
        return trainSAE(buffer, CONFIG, 6, save_dir=tmp_path / name, device="cpu", progress=False, **options)

    path = tmp_path / "text.jsonl"
    texts = tiny.documents(60)
    changed = [*texts[:-1], texts[-1] + " w1"]
    for name, first, second in (("list", texts, changed), ("file", str(path), str(path)), ("model", texts, texts)):
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
        with pytest.raises(Interrupted):
            resumed(first, model, checkpoint_steps=2, loggers=[StopAfter(3)], log_steps=1)
        path.write_text("\n".join(json.dumps({"text": text}) for text in changed))
        other = load_model(tiny.model(seed=1), tokenizer=tiny.tokenizer()) if name == "model" else model
        with pytest.raises(
            ConfigError, match="contents." + {"list": "documents", "file": "files", "model": "model"}[name]
        ):
            resumed(second, other, resume="auto")


def test_a_path_resumes_into_another_folder(tmp_path):
    run(tmp_path / "whole", log_steps=1)
    folder = stopped(tmp_path / "first")
    for number, place in enumerate((folder, folder / "checkpoints" / "step_5")):
        run(tmp_path / f"second_{number}", log_steps=1, resume=place)
        ours, whole = files(tmp_path / f"second_{number}"), files(tmp_path / "whole")
        weights = "trainer_0/dictionary.safetensors"
        assert ours[weights] == whole[weights] and ours.keys() == whole.keys()
    with pytest.raises(CheckpointError, match="no complete checkpoint in"):
        run(tmp_path / "third", resume=tmp_path / "nowhere")


def test_a_disk_that_is_full_costs_a_warning_and_no_older_checkpoint(tmp_path, monkeypatch, caplog):
    calls = []

    def full(*given):
        calls.append(given)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return write(*given)

    from dictionary_learning import _resume

    write = _resume.write_checkpoint
    monkeypatch.setattr(_resume, "write_checkpoint", full)
    run(tmp_path, checkpoint_steps=4, keep_checkpoints=1)
    assert "checkpoint of step 8 could not be written" in caplog.text and "No space left" in caplog.text
    assert [given[1] for given in calls] == [4, 8, 12]  # tried again at the next period


@pytest.mark.parametrize("options", [{"checkpoint_steps": 3}, {"resume": "auto"}], ids=str)
def test_checkpoints_need_a_folder(options):
    with pytest.raises(ConfigError, match="give save_dir"):
        trainSAE(list(Planted().batches(2, 64)), CONFIG, 2, progress=False, **options)


def test_signals_are_the_callers_again_after_a_run(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stopped(tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_interrupt_ends_at_once(tmp_path):
    class Twice(StopAfter):
        def log(self, figures, step, tokens):
            super().log(figures, step, tokens)
            super().log(figures, step, tokens)

    with pytest.raises(KeyboardInterrupt) as raised:
        run(tmp_path, loggers=[Twice(3, signal.SIGINT)], log_steps=1)
    assert not isinstance(raised.value, Interrupted)


KILLED = """
import sys, torch
from pathlib import Path
from dictionary_learning import trainSAE
from tests.tiny import Planted
trainSAE(list(Planted().batches(60, 64)), {"trainer": "top_k", "k": 3, "dict_size": 96}, 60, save_dir=sys.argv[1],
         checkpoint_steps=1, resume="auto", log_steps=1, progress=False, device="cpu")
"""


def test_a_run_that_is_killed_goes_on_from_its_newest_checkpoint(tmp_path, full):
    """`kill -9` at any moment, also while a checkpoint is written."""
    run_script(KILLED, tmp_path / "whole")
    for n_checkpoints in (2, 9, 30) if full else (9,):
        process, newest = (
            start_script(KILLED, tmp_path / "parts"),
            tmp_path / "parts" / "checkpoints" / f"step_{n_checkpoints}",
        )
        while process.is_alive() and not newest.exists():
            time.sleep(0.002)
        process.kill()
        process.join()
    run_script(KILLED, tmp_path / "parts")
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


def test_the_shell_stops_with_the_command_that_goes_on(model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(CaptureArguments, "load", lambda self, name: model)
    monkeypatch.setattr("dictionary_learning.cli._evaluate.report_on", lambda *_: SimpleNamespace(show=print))
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in tiny.documents(30)))
    command = [
        "train", "any", str(tmp_path / "text.jsonl"), "--sites", "model.layers.1", "--ctx-len", "16", "--batch-size", "32",
        "--n-tokens", "256", "--n-ctxs", "8", "--refresh-batch-size", "4", "--n-eval-tokens", "32",
        "--n-fidelity-tokens", "0", "--held-out-every", "5", "--device", "cpu", "--log-steps", "1", "--checkpoint-steps", "3",
    ]  # fmt: skip
    assert main([*command, "--save-dir", str(tmp_path / "whole")]) == 0
    log, stop = JSONLLogger.log, StopAfter(5, signal.SIGTERM)

    def log_and_stop(self, figures, step, tokens):
        log(self, figures, step, tokens)
        stop.log(figures, step, tokens)

    monkeypatch.setattr(JSONLLogger, "log", log_and_stop)
    parts = [*command, "--save-dir", str(tmp_path / "parts")]
    caplog.set_level("INFO")
    assert main(parts) == STOPPED
    monkeypatch.setattr(JSONLLogger, "log", log)
    shown = shlex.split(caplog.text.split("What goes on is:\n")[1].split("\n")[0])
    assert shown == ["dictionary-learning", *parts, "--resume"]
    text = (tmp_path / "text.jsonl").read_bytes()
    (tmp_path / "text.jsonl").write_bytes(text.replace(b"w1 ", b"w2 "))
    assert main(shown[1:]) == 2 and "contents.files[0].sha256" in caplog.text
    (tmp_path / "text.jsonl").write_bytes(text)
    assert main(shown[1:]) == 0
    whole, ours = files(tmp_path / "whole"), files(tmp_path / "parts")
    assert ours.keys() == whole.keys()
    for name in ("metrics.jsonl", "trainer_0/dictionary.safetensors"):
        assert ours[name] == whole[name]
    assert main([*command, "--resume"]) == 2 and "give --save-dir" in caplog.text


def run_of(folder, steps=STEPS, **options):
    config = {"trainer": "top_k", "k": 3, "dict_size": 48}
    common = {"progress": False, "device": "cpu", "save_dir": folder}
    return trainSAE(list(Planted().batches(STEPS, 64)), config, steps, **common, **options)


@pytest.fixture
def unchecked():
    """Leaves types unchecked, as they are for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("resume", [True, None, "", 5])
def test_resume_wants_a_word_or_a_path(unchecked, tmp_path, resume):
    with pytest.raises(ConfigError, match="Got resume="):
        run_of(tmp_path / "run", resume=resume)
    assert not (tmp_path / "run").exists()


def test_a_run_that_resumes_another_mixes_with_no_third(tmp_path):
    run_of(tmp_path / "a", checkpoint_steps=4)
    run_of(tmp_path / "b")
    for place in (tmp_path / "a", tmp_path / "a" / "checkpoints" / "step_8"):
        with pytest.raises(ConfigError, match="holds another run"):
            run_of(tmp_path / "b", resume=place)
    run_of(tmp_path / "c", resume=tmp_path / "a" / "checkpoints" / "step_8")
    run_of(tmp_path / "a", resume=tmp_path / "a" / "checkpoints" / "step_8")


def test_a_finished_run_without_checkpoints_is_not_trained_again(tmp_path):
    run_of(tmp_path)
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="is finished"):
        run_of(tmp_path, resume="auto")
    assert files(tmp_path) == before


def test_what_may_change_must_be_known(tmp_path):
    run_of(tmp_path, checkpoint_steps=4, steps=8)
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        run_of(tmp_path, resume="auto", allow_changed=["stepz"])
    with pytest.raises(ConfigError, match="a list of str"):
        run_of(tmp_path, resume="auto", allow_changed="steps")
    run_of(tmp_path, resume="auto", allow_changed=iter(["steps", "decay_start", "warmup_steps"]))


def test_a_stop_without_room_for_a_checkpoint_saves_the_dictionaries(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dictionary_learning._resume.write_checkpoint", full)
    stopped(tmp_path, at=5)
    assert load_dictionary(tmp_path / "trainer_0").info.config["trained"]["step"] == 5


def test_a_stop_at_the_last_step_is_a_stop_too(tmp_path):
    stopped(tmp_path / "parts", at=STEPS)
    run(tmp_path / "parts", log_steps=1, resume="auto")
    run(tmp_path / "whole", log_steps=1)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_data_whose_config_cannot_be_saved_is_refused_before_training(tmp_path):
    class Data(list):
        pass

    data = Data(Planted().batches(3, 64))
    data.config = {"callback": object()}
    with pytest.raises(ConfigError, match="callback"):
        trainSAE(data, CONFIG, 3, save_dir=tmp_path, progress=False, device="cpu")


class DoAfter(StopAfter):
    """A logger that does something to the run's folder at a step."""

    def __init__(self, step: int, do):
        self.step, self.do = step, do

    def log(self, figures, step, tokens):
        if step == self.step:
            self.do()


def gone(path: Path) -> None:
    path.rename(path.parent.parent / "gone")  # at once, also while a checkpoint is written


def replaced_by_a_file(path: Path) -> None:
    gone(path)
    path.write_text("x")


def moved_away(path: Path) -> None:
    gone(path)
    path.mkdir()


@pytest.mark.parametrize("harm", ["removed", "replaced", "moved", "checkpoints replaced", "dictionary replaced"])
def test_whatever_happens_to_the_folder_the_run_goes_on_and_is_saved(harm, tmp_path, caplog):
    folder = tmp_path / "runs" / "run"
    do = {
        "removed": lambda: gone(folder),
        "replaced": lambda: replaced_by_a_file(folder),
        "moved": lambda: moved_away(folder),
        "checkpoints replaced": lambda: replaced_by_a_file(folder / "checkpoints"),
        "dictionary replaced": lambda: (folder / "trainer_0").write_text("x"),
    }[harm]
    (trained,) = run_of(folder, checkpoint_steps=2, log_steps=1, loggers=[DoAfter(5, do)])
    ((saved, loaded),) = [
        (path, load_dictionary(path.parent)) for path in tmp_path.glob("runs/run*/trainer_0/config.json")
    ]
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), loaded.parameters(), strict=True))
    # where the folder can be written again, nothing else is lost
    if harm in ("removed", "moved"):
        assert saved.parent.parent == folder
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == STEPS
        assert [path.name for path in sorted(folder.glob("checkpoints/step_*"))] == ["step_10", "step_12"]
    else:
        assert "could not be written" in caplog.text
