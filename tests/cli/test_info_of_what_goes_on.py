"""`info` of what is not finished is a state and no error, and of a sweep what its report says."""

import json
import shutil

import pytest

from dictionary_learning import SweepConfig, run_sweep, trainSAE
from dictionary_learning._run_folder import COMMAND
from dictionary_learning._what_is import IN_PYTHON
from dictionary_learning.cli import main
from dictionary_learning.errors import ConfigError, Interrupted
from dictionary_learning.loggers import read_history
from tests.cli.test_info import cells, piped, terminal  # noqa: F401  (a fixture)
from tests.test_resume import StopAfter
from tests.tiny import Planted

COMMANDS = {"shell": ("train", "gpt2", "text.jsonl"), "python": None}


@pytest.fixture(params=COMMANDS)
def stopped(request, tmp_path):
    """A run that a signal stopped at step 3 of 8, as the shell or Python began it, and its call."""
    run, data = tmp_path / "run", list(Planted().batches(8, 32))

    def train(**options):
        return trainSAE(data, {"trainer": "top_k", "k": 3, "dict_size": 48}, 8, save_dir=run, progress=False, **options)

    token = COMMAND.set(COMMANDS[request.param])
    try:
        with pytest.raises(Interrupted):
            train(log_steps=1, checkpoint_steps=2, loggers=[StopAfter(3)])
    finally:
        COMMAND.reset(token)
    return run, train


def goes_on(run, command):
    resuming = f"dictionary-learning {' '.join(command or ())} --save-dir {run} --resume"
    return IN_PYTHON if command is None else resuming


def test_an_unfinished_run_has_its_state(stopped, request, terminal, capsys):  # noqa: F811
    (run, _), command = stopped, COMMANDS[request.node.callspec.params["stopped"]]
    head, line, *rest = terminal(str(run))
    last = read_history(run / "metrics.jsonl", "top_k-3")[-1]
    facts = ["top_k-3", "AutoEncoderTopK", "activations:out", "32 x 48", "3", "3 of 8", f"{last['fvu']:.4f}", f"{last['l0']:.1f}"]  # fmt: skip
    assert [cell.strip() for cell in cells(line)] == facts and "FVU" in head
    assert "Checkpoints: after step 2, 3." in rest and goes_on(run, command) in map(str.strip, rest)
    assert not any(" evaluate " in one or " dashboard " in one for one in rest)
    (found,) = piped(capsys, str(run)).values()
    assert (found["finished"], found["trained"], found["checkpoints"]) == (False, {"step": 3, "steps": 8}, [2, 3])


def test_the_same_call_again_is_told_to_resume(stopped, request, caplog):
    (run, train), command = stopped, COMMANDS[request.node.callspec.params["stopped"]]
    with pytest.raises(ConfigError, match="not finished, at step 3 of 8. To begin anew: .* overwrite=True") as refused:
        train()
    assert str(refused.value).endswith(goes_on(run, command))
    (dictionary,) = train(resume="auto")
    assert dictionary.info.config["trained"]["step"] == 8


def test_a_run_that_was_stopped_while_it_was_made_longer_is_unfinished(tmp_path):
    data, options = list(Planted().batches(9, 32)), {"save_dir": tmp_path, "progress": False, "checkpoint_steps": 1}
    config = {"trainer": "top_k", "k": 3, "dict_size": 48}
    trainSAE(data, config, 4, **options)
    with pytest.raises(ConfigError, match="holds another run"):
        trainSAE(data, config, 9, **options)
    changed = ["steps", "warmup_steps", "decay_start"]
    with pytest.raises(Interrupted):
        trainSAE(data, config, 9, resume="auto", allow_changed=changed, loggers=[StopAfter(6)], log_steps=1, **options)
    with pytest.raises(ConfigError, match="not finished, at step 6 of 9"):
        trainSAE(data, config, 9, **options)


def test_a_sweep_shows_its_figures_and_folders(tmp_path, terminal, capsys):  # noqa: F811
    sweep, batches = (
        SweepConfig(methods={"top_k": {"k": [2, 3]}}, grid={"dict_size": 48}),
        list(Planted().batches(6, 32)),
    )
    run_sweep(sweep, batches, 6, tmp_path / "s", evaluation_data=batches, memory_gb=1, progress=False)
    results = {one["folder"]: one for one in json.loads((tmp_path / "s" / "results.json").read_text())["dictionaries"]}
    shown = terminal(str(tmp_path / "s"))
    for line, (folder, one) in zip(shown[1:3], results.items(), strict=True):
        assert line.endswith(f"{tmp_path}/s/{folder}") and f"{one['figures']['fvu']:.4f}" in line
    assert f"Figures are those of {tmp_path}/s/sweep.html" in shown and "The sweep finished." in shown
    assert not any(" evaluate " in line for line in [*shown, *terminal(str(tmp_path / "s" / "group_0"))])
    assert list(piped(capsys, str(tmp_path / "s"))) == [f"{tmp_path}/s/{folder}" for folder in results]
    shutil.rmtree(tmp_path / "s" / "group_0" / "trainer_1")
    (tmp_path / "s" / "group_0" / "finished.json").unlink()
    (tmp_path / "s" / "results.json").unlink()
    assert any("is a sweep that is not finished" in line for line in terminal(str(tmp_path / "s")))
    assert main(["info", str(tmp_path / "s" / "nothing")]) == 2
