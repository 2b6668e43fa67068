"""Names and pages say which sites dictionaries are of, and of which model, text and tokens."""

import pytest
import torch

from dictionary_learning import SweepConfig, run_sweep, trainSAE
from dictionary_learning.sweeps import Row
from dictionary_learning.sweeps._report import _told
from dictionary_learning.sweeps._results import Summary, summaries
from dictionary_learning.sweeps._tables import cells, share_cells
from tests.tiny import Planted

SITES = [f"model.layers.{n}" for n in (1, 3, 5, 7)]


@pytest.mark.parametrize(
    ("n_sites", "named"),
    [(2, "layers.1 and layers.3"), (3, "layers.1, layers.3 and layers.5"), (4, "4 sites, layers.1 to layers.7")],
)
def test_a_crosscoder_has_the_names_of_its_sites(n_sites, named):
    batches = [{site: torch.randn(64, 8) for site in SITES[:n_sites]} for _ in range(2)]
    config = {"trainer": "top_k", "wiring": "crosscoder", "k": 3, "dict_size": 48}
    (dictionary,) = trainSAE(batches, config, 2, progress=False)
    assert dictionary.info.name == f"top_k-3-crosscoder @ {named}"


def test_a_sweep_says_its_model_text_sites_and_tokens():
    data = {"model": {"name": "owner/model"}, "source": "text.jsonl", "out_batch_size": 64}
    title, about = _told({"steps": 10, "data": data, "evaluation": {"n_tokens": 256}}, ["a:out", "b:out", "a:out"])
    assert title == "Sweep on owner/model"
    assert about == "10 steps on 640 tokens of text.jsonl, at a:out and b:out; evaluated on 256 others."
    assert _told({}, ["a:out"]) == ("", "") and _told({"steps": 3, "data": [1]}, ["a:out"])[0] == ""


def test_a_sweep_on_tensors_is_named_by_its_folder(tmp_path):
    batches = list(Planted().batches(4, 32))
    sweep = SweepConfig(methods={"top_k": {"k": [2, 3]}}, grid={"dict_size": 48})
    result = run_sweep(sweep, batches, 4, tmp_path / "grid", evaluation_data=batches, memory_gb=1, progress=False)
    page = result.report.read_text()
    assert "<h1>Sweep: grid</h1>" in page and "4 steps, at activations:out" in page
    assert "remark" not in page and " ± 0.0000" not in page


def test_an_error_that_rounds_to_nothing_is_not_shown(tmp_path):
    rows = [Row("a", "top_k", {"seed": n}, "s", tmp_path, {"l0": 2.0, "fvu": 0.13}, {}) for n in range(3)]
    (found,) = summaries(rows)
    assert found.errors == {"l0": 0.0, "fvu": 0.0}
    for error in (0.0, 1e-9, 4e-5):
        _, ((*_, shown, _),) = cells([Summary("top_k", {}, "s", 1, {"fvu": 0.13}, {"fvu": error})])
        assert shown == "0.1300"
    assert "remark" not in share_cells([])[0]
