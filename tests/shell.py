"""A short run of `train` on a tiny model and text, as the shell and a run file start it."""

from pathlib import Path

from torch import Tensor

from dictionary_learning import load_dictionary
from dictionary_learning.cli import main
from tests import tiny


def trained(folder: Path, options: list[str], switch: list[str]) -> list[dict[str, Tensor]]:
    """Returns what is learnt without the switch, with it, and from the run file of the latter.

    The runs are in `plain`, `switched` and `file`.
    """
    tiny.save_model(folder / "model")
    (folder / "text.txt").write_text("\n\n".join(tiny.documents(60)))
    train = ["train", str(folder / "model"), str(folder / "text.txt"), "--layers", "0", "--k", "3", *options]
    train += ["--dict-size", "48", "--ctx-len", "16", "--batch-size", "64", "--n-tokens", "192", "--device", "cpu"]
    train += ["--n-eval-tokens", "100", "--n-fidelity-tokens", "0"]
    file = ["train", "--config", str(folder / "switched" / "run.yaml")]
    commands = {"plain": train, "switched": [*train, *switch], "file": file}
    for name, command in commands.items():
        assert main([*command, "--save-dir", str(folder / name)]) == 0
    return [load_dictionary(folder / name / "trainer_0").state_dict() for name in commands]
