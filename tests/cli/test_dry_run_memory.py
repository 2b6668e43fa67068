"""`train --dry-run` says what the run then takes of main memory, its evaluation and report included."""

import json
import re
import sys

import pytest
import torch
import transformers

from tests import tiny
from tests.processes import run_script

WIDTH = 512
"""So wide that what the rows of a run take is most of what is beside Python and PyTorch."""
_APART = 0.2
"""Of runs of a language model 0.1 was found; here the heap, whose gaps differ each time, is most of it."""
CASES = {
    "autoencoder": ("--layers", "0", "--k", "8"),
    "transcoder": ("--wiring", "transcoder", "--layers", "0", "--k", "8"),
    "two sites and widths": ("--layers", "0", "1", "--k", "8", "16"),
}
COMMAND = """
import resource, sys
from dictionary_learning.cli import main
status = main(sys.argv[1:])
print("taken", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(tiny.tokenizer()), **sizes, max_position_embeddings=64)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in tiny.documents(2500)))
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what is held now is known on Linux")
@pytest.mark.parametrize("case", CASES)
def test_a_dry_run_tells_the_memory_that_the_run_takes(place, tmp_path, case):
    sizes = ("--dict-size", "2048", "--n-tokens", "36000", "--ctx-len", "32", "--batch-size", "1024")
    evaluation = ("--n-eval-tokens", "512", "--n-fidelity-tokens", "256", "--n-resamples", "0", "--device", "cpu")
    words = ["train", place / "model", place / "text.jsonl", *CASES[case], *sizes, *evaluation]
    told = re.search(r"memory: at most, about +([\d.]+) (GB|MB)", run_script(COMMAND, *words, "--dry-run").stdout)
    taken = re.search(r"taken (\d+)", run_script(COMMAND, *words, "--save-dir", tmp_path / "run").stdout)
    assert told is not None and taken is not None
    assert float(told[1]) * {"GB": 1e9, "MB": 1e6}[told[2]] == pytest.approx(int(taken[1]), rel=_APART)
