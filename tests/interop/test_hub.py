"""The hub, by its real client, against a stand-in for the server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._card import model_card
from dictionary_learning.interop._hub import wanted
from tests.interop.hub_server import Hub

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Runs the client once; returns what it saw, and the hub as it was left."""
    folder = tmp_path_factory.mktemp("hub")
    hub = Hub()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(folder / "home"),
        "HF_TOKEN": "hf_of_the_test",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.interop.hub_client", str(folder / "said.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "said.json").read_text()), hub


def test_what_was_pushed_is_loaded(session):
    said, _ = session
    assert said["main"] and said["inside"]


def test_revisions_are_apart(session):
    said, hub = session
    assert said["other"]
    assert hub.branches["owner/mine"]["main"] != hub.branches["owner/mine"]["other"]


def test_a_dictionary_is_pushed_in_the_format_of_others(session):
    said, hub = session
    assert said["theirs"]
    files = hub.commits["owner/theirs"][hub.branches["owner/theirs"]["main"]]
    assert sorted(files) == ["README.md", "cfg.json", "sae.safetensors"]


@pytest.mark.parametrize("name", ["circuit_tracer_clt", "gemma_scope_2_clt"])
def test_files_of_layers_are_one_dictionary(session, name):
    said, _ = session
    assert said[name] == [name, name]


def test_runs_come_in_natural_order(session):
    said, _ = session
    assert said["names"] == ["layers.0", "layers.2", "layers.10"]
    assert said["class"] == "AutoEncoderTopK"


def test_only_the_needed_files_are_fetched(session):
    _, hub = session
    # both files of the first are fetched side by side, in either order
    last = max(hub.downloads.index(f"layers.10/{name}") for name in ("cfg.json", "sae.safetensors"))
    before = hub.downloads[: last + 1]
    assert not [path for path in before if path.startswith(("layers.0", "layers.2/"))]
    assert not [path for path in hub.downloads if "optimizer" in path or "state" in path or path.endswith("README.md")]


def test_the_cache_serves_without_a_connection(session):
    said, _ = session
    assert said["from the cache"]
    assert "cannot be reached" in said["not in the cache"]


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("no site", "There are dictionaries in: layers.0, layers.10, layers.2. Say which by site="),
        ("no such site", "no dictionary at 'layers.7'"),
        ("no repository", "no repository 'owner/none' on the hub"),
        ("no revision", "at revision 'v9'"),
        ("no name", "neither a folder nor the name of a repository"),
    ],
)
def test_errors_say_what_is_there(session, case, text):
    said, _ = session
    assert text in said[case]


def test_model_card_is_written_from_the_report(session):
    _, hub = session
    card = hub.commits["owner/mine"][hub.branches["owner/mine"]["main"]]["README.md"].decode()
    _, front, text = card.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["base_model"] == "EleutherAI/pythia-70m" and "sparse-autoencoder" in values["tags"]
    (result,) = values["model-index"][0]["results"]
    assert {m["type"]: m["value"] for m in result["metrics"]} == {"fvu": 0.25, "l0": 4.0}
    assert 'load_dictionary("owner/mine", site="layers.3")' in text
    assert "| `layers.3:out` | AutoEncoderTopK | 40 | 0.25 | 4 | - | - |" in text


def test_card_without_a_report_says_what_is_known():
    card = model_card("owner/name", config={"model": {"name": "gpt2"}})
    assert "of `gpt2`" in card and "model-index" not in card


def test_files_that_are_wanted():
    listed = [
        "README.md",
        "layers.0/cfg.json",
        "layers.0/sae.safetensors",
        "layers.0/other.bin",
        "layers.1/cfg.json",
        "layers.1/sae.safetensors",
        "best/layers.0/cfg.json",
        "best/layers.0/sae.safetensors",
        "run/trainer_0/ae.pt",
        "run/trainer_0/config.json",
        "run/trainer_0/checkpoints/ae_5.pt",
        "config.yaml",
        "layer_1.safetensors",
        "layer_10.safetensors",
        "L0R/hyperparams.json",
        "L0R/checkpoints/final.safetensors",
    ]
    assert wanted(listed, "layers.0", False) == ["layers.0/cfg.json", "layers.0/sae.safetensors"]
    assert wanted(listed, "layer_1", False) == ["config.yaml", "layer_1.safetensors"]
    assert wanted(listed, "run/trainer_0/checkpoints/ae_5", False) == [
        "run/trainer_0/config.json",
        "run/trainer_0/checkpoints/ae_5.pt",
    ]
    assert wanted(listed, "L0R", False) == ["L0R/hyperparams.json", "L0R/checkpoints/final.safetensors"]
    many = wanted(listed, "", True)
    assert "layers.1/sae.safetensors" in many and not [path for path in many if path.startswith("best")]
    assert wanted(listed, "layers.9", False) == []


def test_a_folder_that_is_not_there_is_not_uploaded(tmp_path):
    from dictionary_learning import push_to_hub

    with pytest.raises(CheckpointError, match="There is no folder"):
        push_to_hub(tmp_path / "missing", "owner/name")
