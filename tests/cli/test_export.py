"""`dictionary-learning export`: each kind from the shell."""

import gzip
import json
import logging
from typing import get_args

import pytest
import torch
import yaml

import dictionary_learning as dl
from dictionary_learning.cli import main
from dictionary_learning.cli._export import ExportArguments
from dictionary_learning.config import field_types
from dictionary_learning.dictionaries import DictionaryInfo
from dictionary_learning.errors import ConfigError
from dictionary_learning.interpretation import Explanation, collect_contexts
from dictionary_learning.interpretation.explanations import save_explanations
from tests import tiny
from tests.stub_server import Reply, serving


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with contexts of a dictionary, the dictionary, and transcoders of two layers."""
    root = tmp_path_factory.mktemp("place")
    model = dl.load_model(tiny.model(), tokenizer=tiny.tokenizer())
    dictionary = dl.AutoEncoderTopK(tiny.DIM, 24, 4)
    dictionary.info = DictionaryInfo(sites=("model.layers.1",), name="mine")
    dl.save_dictionary(dictionary, root / "mine")
    tiny.save_model(root / "model")
    options = {"n_tokens": 400, "ctx_len": 16, "window": (4, 2)}
    collect_contexts(model, {"mine": dictionary}, tiny.documents(40), root / "store", **options)
    save_explanations(root / "store" / "0", {3: Explanation("cats", "somebody", {})})
    for layer in range(2):
        made = dl.Transcoder(tiny.DIM, 24, {"name": "relu"})
        path = f"model.layers.{layer}.mlp"
        made.info = DictionaryInfo(sites=(f"{path}:in",), target_sites=(f"{path}:out",), name=f"t{layer}")
        dl.save_dictionary(made, root / "run" / f"trainer_{layer}")
    return root


def export(capsys, *words: object) -> str:
    assert main(["export", *map(str, words)]) == 0
    return capsys.readouterr().out.strip()


def test_neuronpedia(place, tmp_path, capsys):
    options = ["--model-id", "tiny", "--source-set", "res", "--weights", place / "mine", "--latents", "0-5"]
    options += ["--model", place / "model"]
    folder = export(capsys, place / "store", tmp_path, "--to", "neuronpedia", *options)
    assert folder == str(tmp_path / "tiny" / "1-res")
    rows = gzip.decompress((tmp_path / "tiny" / "1-res" / "features" / "batch-0.jsonl.gz").read_bytes()).splitlines()
    row = json.loads(rows[3])
    assert len(rows) == 6 and len(row["vector"]) == tiny.DIM
    assert len(row["pos_str"]) == len(row["topkCosSimIndices"]) == 10 and row["pos_values"][0] >= row["pos_values"][9]
    assert (tmp_path / "tiny" / "1-res" / "explanations" / "batch-0.jsonl.gz").is_file()


def test_neuronpedia_upload(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "np-key")
    options = ["--model-id", "tiny", "--source-set", "res", "--layer", "7"]
    with serving(lambda request, n: Reply({"message": "created"})) as stub:
        for _ in range(2):
            export(capsys, place / "store", tmp_path, "--to", "neuronpedia-upload", *options, "--url", stub.url)
    (request,) = stub.requests
    assert request.body["source"] == "7-res"
    assert {"text": "cats"} in [one for f in request.body["features"] for one in f["explanations"]]


def test_sae_dashboard_and_pictures(place, tmp_path, capsys, caplog):
    words = ["export", str(place / "store"), str(tmp_path / "a"), "--to", "saedashboard"]
    assert main(words) == 2 and "name no model. Give --model-id." in caplog.text  # it was an object
    export(capsys, *words[1:], "--model-id", "tiny")
    assert json.loads((tmp_path / "a" / "batch-0.json").read_text())["sae_set"] == "mine"
    export(capsys, place / "store", tmp_path / "b", "--to", "png", "--latents", "3")
    assert (tmp_path / "b" / "latent_3.png").read_bytes()[:4] == b"\x89PNG"


def test_circuit_tracer(place, tmp_path, capsys):
    folder = export(capsys, place / "run", tmp_path, "--to", "circuit-tracer", "--model-id", "me/model")
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert folder == str(tmp_path) and config["model_name"] == "me/model" and len(config["transcoders"]) == 2


@pytest.mark.parametrize("option", ["--model-id", "--scan"])
def test_attribution_graph(place, tmp_path, capsys, option):
    options = ["--model", place / "model", "--prompt", "w1 w2 w3", "--slug", "mine", option, "tiny"]
    path = export(capsys, place / "run", tmp_path, "--to", "attribution-graph", *options, "--max-latents", "20")
    assert path == str(tmp_path / "mine.json")
    made = json.loads((tmp_path / "mine.json").read_text())
    assert made["metadata"]["scan"] == "tiny" and made["metadata"]["prompt_tokens"] == ["<s>", "w1", "w2", "w3"]
    assert made["metadata"]["generation_settings"]["max_feature_nodes"] == 20 and made["links"]


@pytest.mark.parametrize(
    ("slugs", "names"), [([], ["graph-1", "graph-2"]), (["--slug", "one", "other"], ["one", "other"])]
)
def test_graphs_of_several_prompts_load_the_model_once(place, tmp_path, capsys, monkeypatch, slugs, names):
    loaded, load = [], ExportArguments.load
    monkeypatch.setattr(ExportArguments, "load", lambda self, *given: (loaded.append(given), load(self, *given))[1])
    options = ["--model", place / "model", "--max-latents", "20", "--prompt", "w1 w2", "w3 w4 w5", *slugs]
    paths = export(capsys, place / "run", tmp_path, "--to", "attribution-graph", *options).splitlines()
    assert paths == [str(tmp_path / f"{name}.json") for name in names] and len(loaded) == 1
    prompts = [json.loads((tmp_path / f"{name}.json").read_text())["metadata"]["prompt"] for name in names]
    assert prompts == ["w1 w2", "w3 w4 w5"]


@pytest.mark.parametrize(("options", "dtype"), [([], "float32"), (["--dtype", "bfloat16"], "bfloat16")])
def test_a_graph_is_computed_in_float32_by_default(place, tmp_path, monkeypatch, options, dtype):
    """Also where bfloat16 is fast, and other commands load in it."""
    seen = []

    def graph(model, transcoders, prompt, **more):
        seen.append(str(model.dtype))
        raise ConfigError("enough")

    monkeypatch.setattr("dictionary_learning.models.fast_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr("dictionary_learning.attribution.attribution_graph", graph)
    words = ["export", str(place / "run"), str(tmp_path), "--to", "attribution-graph", "--prompt", "w1 w2"]
    assert main([*words, "--model", str(place / "model"), *options]) == 2
    assert seen == [f"torch.{dtype}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slug", "a b"], "slug"),
        (["--slug", "a", "b"], "Got --slug a b for 1 of --prompt"),
        (["--source-set", "a b"], "a b"),
        ([], "no list of graphs"),
    ],
)
def test_names_of_a_graph_are_checked_before_it_is_computed(place, tmp_path, monkeypatch, caplog, options, message):
    monkeypatch.setattr("dictionary_learning.attribution.attribution_graph", lambda *_, **__: pytest.fail("computed"))
    (tmp_path / "graph-metadata.json").write_text("{}" if options else "[5]")
    words = ["export", str(place / "run"), str(tmp_path), "--to", "attribution-graph", "--prompt", "w1 w2"]
    assert main([*words, "--model", str(place / "model"), *options]) == 2
    assert message in caplog.records[-1].getMessage()


def test_control_vector(place, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    gguf = pytest.importorskip("gguf")
    path = export(capsys, place / "mine", tmp_path, "--to", "control-vector", "--strengths", "5:2", "7:-0.5")
    (tensor,) = gguf.GGUFReader(path).tensors
    rows = dl.load_dictionary(place / "mine").W_dec
    assert tensor.name == "direction.1"
    assert torch.allclose(torch.tensor(tensor.data), 2 * rows[5] - 0.5 * rows[7], atol=1e-6)
    assert not [one for one in caplog.records if one.name.startswith("gguf")]  # of a temporary name


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("store", ["--to", "neuronpedia"], "--model-id and --source-set"),
        ("mine", ["--to", "control-vector"], "--strengths nothing"),
        ("mine", ["--to", "control-vector", "--strengths", "5"], "5:10"),
        ("mine", ["--to", "control-vector", "--strengths", "99:1"], "latents 0 to 23"),
        ("mine", ["--to", "circuit-tracer"], "wiring="),
        ("run", ["--to", "attribution-graph"], "Give --prompt"),
        ("run", ["--to", "attribution-graph", "--prompt", "w1"], "Give --model"),
        ("store", ["--to", "png", "--model", "m"], "Give both"),
        ("store", ["--to", "png", "--dictionary", "other"], "mine"),
        ("store", ["--to", "png", "--latents", "99"], "latents 0 to 23"),
        ("store", ["--to", "nosuch"], "control-vector"),
        ("store", ["--to", "png", "--dtype", "float32"], "Got --dtype with --to png"),
        ("mine", ["--to", "control-vector", "--strengths", "5:1", "--device", "cpu"], "Got --device"),
    ],
    ids=str,
)
def test_what_is_missing_is_said(place, tmp_path, caplog, source, options, message):
    assert main(["export", str(place / source), str(tmp_path), *options]) == 2
    assert message in caplog.records[-1].getMessage()


@pytest.mark.parametrize("to", get_args(field_types(ExportArguments)["to"]))
def test_every_kind_says_what_it_is_made_of(place, tmp_path, caplog, to):
    """As who has contexts and wants circuit-tracer's files, or dictionaries and wants Neuronpedia's."""
    of_contexts = to in ("neuronpedia", "neuronpedia-upload", "saedashboard", "png")
    for source in ["run", "mine"] if of_contexts else ["store"]:
        assert main(["export", str(place / source), str(tmp_path), "--to", to]) == 2
        message = caplog.records[-1].getMessage()
        assert f"Got --to {to} with '{place / source}'" in message
        expected = f"dictionary-learning contexts {place / source} --save-dir store" if of_contexts else "from weights"
        assert expected in message and all(name in message for name in (["control-vector"] if of_contexts else ["png"]))
