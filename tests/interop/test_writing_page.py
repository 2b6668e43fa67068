"""The table of docs/formats.md is what `write_dictionary` does with what each method trains."""

import re
from pathlib import Path

import pytest
import torch

from dictionary_learning import load_dictionary, write_dictionary
from dictionary_learning.dictionaries import JumpReluAutoEncoder, Transcoder
from dictionary_learning.dictionaries.nonlinearities import JumpReLU
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop import FORMATS
from dictionary_learning.trainers import TRAINERS, RunInfo

PAGE = (Path(__file__).parent.parent.parent / "docs" / "formats.md").read_text()
WRITES = [name for name, known in FORMATS.items() if known.writes]
HOOKS = {"hook_name": "blocks.1.hook_resid_pre"}


def rows() -> dict[str, dict[str, str]]:
    """Returns by method what each format holds of it, in the page's words."""
    start = PAGE.index("| method |")
    head, _, *body = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in PAGE[start:].split("\n\n")[0].splitlines()
    ]
    return {method: dict(zip(head[1:], row[1:], strict=True)) for row in body for method in re.findall(r"\w+", row[0])}


def trained(method: str, wiring: str):
    trainer = TRAINERS[method]
    further = {"k": 4} if "k" in trainer.Config.__dataclass_fields__ else {}
    run = RunInfo(activation_dim=16, steps=4, output_dims=None if wiring == "autoencoder" else (16,))
    further |= {} if wiring == "autoencoder" else {"wiring": wiring}
    made = trainer.Config(dict_size=64, **further).build(run)
    if method not in ("end_to_end", "temporal"):  # which need a model, or contexts
        made.update(0, torch.randn(64, 16), *([] if wiring == "autoencoder" else [torch.randn(64, 16)]))
    return made.dictionary


def written(dictionary, to: str, folder) -> str:
    """Returns how a dictionary comes back from a format; empty for one that is refused."""
    hooks = HOOKS if type(dictionary) is not Transcoder else {**HOOKS, "hook_name_out": "blocks.1.hook_mlp_out"}
    try:
        loaded = load_dictionary(write_dictionary(dictionary, folder / to, to, **(hooks if to == "sae_lens" else {})))
    except CheckpointError:
        return ""
    was, now = (isinstance(one, JumpReluAutoEncoder) or isinstance(getattr(one, "nonlinearity", None), JumpReLU) for one in (dictionary, loaded))  # fmt: skip
    return "yes, as JumpReLU" if now and not was else "yes"


def test_every_method_is_in_the_table():
    assert set(rows()) == set(TRAINERS)
    assert set(next(iter(rows().values()))) | {"own"} == {name for name in WRITES if name != "saprmarks"}


@pytest.mark.parametrize("method", sorted(TRAINERS))
def test_what_the_page_says_is_written(method, tmp_path):
    torch.manual_seed(0)
    wirings = ("autoencoder",) if method == "temporal" else ("autoencoder", "transcoder", "skip_transcoder")
    made = {wiring: trained(method, wiring) for wiring in wirings}
    for to, said in {**rows()[method], "own": "both"}.items():
        got = {wiring: written(one, to, tmp_path / wiring) for wiring, one in made.items()}
        what, _, as_ = said.partition(", ")
        for wiring, found in got.items():
            expected = what == "both" or (what == "autoencoders" and wiring == "autoencoder")
            assert found == (f"yes, {as_}" if as_ else "yes" if expected else ""), (to, wiring)
