"""Runs that torchrun starts: again after a failure, and the demo beside one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dictionary_learning import load_dictionary, trainSAE
from tests import tiny
from tests.tiny import Planted

ROOT = Path(__file__).parent.parent.parent
SECONDS = 200
SCRIPT = """
import os, signal, sys
from pathlib import Path
from tests.parallel.test_torchrun import trained
from dictionary_learning.trainers import TRAINERS

folder = Path(sys.argv[1])

class Dies(TRAINERS["top_k"]):
    def update(self, *given, **named):
        if self.step == 5 and os.environ["RANK"] == "1" and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().update(*given, **named)

trained(Dies, folder / "run", parts=2, checkpoint_steps=2, resume="auto", placement="latent")
"""


def trained(trainer, folder, parts, **options):
    data = [part for x in Planted().batches(8, 64) for part in x.chunk(parts)]
    config = trainer.Config(k=4, dict_size=96, lr=3e-3, dead_feature_threshold=150)
    return trainSAE(data, config, 8, save_dir=folder, progress=False, device="cpu", **options)


def environment():
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DICTIONARY_LEARNING_RANK_TIMEOUT": "60"}


def test_a_run_that_torchrun_starts_again_goes_on_from_its_checkpoint(tmp_path):
    from dictionary_learning.trainers import TRAINERS

    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    done = subprocess.run(
        [sys.executable, "-P", *command, str(script), str(tmp_path)],
        env=environment(), timeout=SECONDS, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "died").exists()
    (alone,) = trained(TRAINERS["top_k"], tmp_path / "alone", parts=1)
    for name, value in load_dictionary(tmp_path / "run" / "trainer_0").state_dict().items():
        torch.testing.assert_close(value, alone.state_dict()[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow  # that ranks train and evaluate as one process does is shown in test_runs, of smaller runs
def test_the_demo_on_two_processes_reports_what_one_does(tmp_path):
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(tiny.documents(400)))
    small = ["--sites", "model.layers.1", "--n-tokens", "6000", "--ctx-len", "16", "--batch-size", "128"]
    small += ["--n-eval-tokens", "600", "--n-fidelity-tokens", "200", "--expansion-factor", "4", "--k", "4"]
    done = subprocess.run(
        ["bash", "demo/distributed.sh", "2", "--model", str(tmp_path / "model"), "--data", str(text), *small],
        env={**environment(), "OUT": str(tmp_path / "out"), "PYTHON": sys.executable},
        cwd=ROOT, timeout=SECONDS, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "fvu" in done.stdout and "differs" not in done.stdout
