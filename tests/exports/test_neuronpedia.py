"""What Neuronpedia and SAEDashboard read, by their rules."""

import dataclasses
import datetime
import gzip
import json
import math

import pytest
import torch

from dictionary_learning import _http
from dictionary_learning._http import Refused
from dictionary_learning.errors import ConfigError, ModelError
from dictionary_learning.exports import (
    LatentFacts,
    upload_batches,
    upload_to_neuronpedia,
    write_neuronpedia,
    write_sae_dashboard,
)
from dictionary_learning.exports._facts import page_of, quantile_edges
from dictionary_learning.interpretation import LatentContexts
from tests.exports.planted_facts import DIM, SIZE, facts, statistics
from tests.interpretation.planted import PlantedContexts
from tests.stub_server import Reply, serving

PLACE = {"model_id": "tiny-model", "layer": 5, "source_set": "res-mine"}
TIME = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
SECRET = "np-secret-key-123"


def lines(path) -> list[dict]:
    data = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()]


@pytest.fixture
def waits(monkeypatch):
    found: list[float] = []
    monkeypatch.setattr(_http, "_sleep", found.append)
    monkeypatch.setenv("NEURONPEDIA_API_KEY", SECRET)
    return found


def test_folder_has_the_tables_of_the_bulk_import(tmp_path):
    folder = write_neuronpedia(facts(), tmp_path, **PLACE, creator_id="someone", created=TIME, release="r")
    assert folder == tmp_path / "tiny-model" / "5-res-mine"
    (source,), (model,), (a_set,), (release,) = (
        lines(folder / f"{name}.jsonl") for name in ("source", "model", "sourceset", "release")
    )
    assert source["id"] == "5-res-mine" and source["setName"] == a_set["name"] == "res-mine"
    assert model["id"] == a_set["modelId"] == "tiny-model" and release["name"] == a_set["releaseName"] == "r"
    rows = lines(folder / "features" / "batch-0.jsonl.gz")
    assert [row["index"] for row in rows] == [str(n) for n in range(SIZE)]
    row = rows[3]
    assert row["modelId"] == "tiny-model" and row["layer"] == "5-res-mine" and row["creatorId"] == "someone"
    assert row["frac_nonzero"] == pytest.approx(float(statistics().density[3])) and row["maxActApprox"] == 10
    assert row["createdAt"] == "2026-01-02T03:04:05+00:00" and row["hookName"] == "blocks.5.hook_resid_post"
    assert len(row["vector"]) == DIM and row["vectorDefaultSteerStrength"] == row["maxActApprox"]
    assert len(row["topkCosSimIndices"]) == 3 and len(row["pos_str"]) == len(row["pos_values"]) == 10
    activations = [one for one in lines(folder / "activations" / "batch-0.jsonl.gz") if one["index"] == "3"]
    assert len({one["id"] for one in activations}) == len(activations) == 16 + 4 * 8
    for one in activations:
        assert one["id"][0] == "c" and len(one["id"]) == 25
        assert one["maxValue"] == max(one["values"]) == one["values"][one["maxValueTokenIndex"]]
        assert len(one["tokens"]) == len(one["values"]) and one["tokens"][one["qualifyingTokenIndex"]] == " word3"
        if one["binContains"] > 0:
            assert one["binMin"] <= one["maxValue"] <= one["binMax"]
    explained = lines(folder / "explanations" / "batch-0.jsonl.gz")
    assert [one["description"][:5] for one in explained] == ["word3", "xxxxx"]


def test_same_facts_make_the_same_bytes(tmp_path):
    folders = [write_neuronpedia(facts(), tmp_path / name, **PLACE, created=TIME) for name in "ab"]
    for path in folders[0].rglob("*.*"):
        assert path.read_bytes() == (folders[1] / path.relative_to(folders[0])).read_bytes()


def test_batches_have_128_latents_and_older_ones_go(tmp_path):
    many = statistics()
    n = 300
    wide = type(many)(many.n_tokens, *(t[torch.arange(n) % SIZE] for t in many[1:]))
    few = PlantedContexts(1, 1, 1)
    given = facts(statistics=wide, contexts=few, effects=None, neighbors=None, directions=None)
    folder = write_neuronpedia(given, tmp_path, **PLACE)
    counts = [len(lines(folder / "features" / f"batch-{i}.jsonl.gz")) for i in range(3)]
    assert counts == [128, 128, 44]
    write_neuronpedia(facts(), tmp_path, **PLACE, latents=[1])
    assert [path.name for path in (folder / "features").iterdir()] == ["batch-0.jsonl.gz"]


def check_by_their_schema(body: dict) -> None:
    """Checks a request by the rules that the site checks."""
    assert body["modelId"] == body["modelId"].lower() and body["source"] == body["source"].lower()
    assert 1 <= len(body["features"]) <= 128 and len({one["index"] for one in body["features"]}) == len(
        body["features"]
    )
    for one in body["features"]:
        assert 0 <= one["index"] <= 10_000_000 and 0 <= one["density"] <= 1 and one["activations"]
        for name in ("topLogits", "bottomLogits"):
            assert len(one[name]) <= 20 and all(x["token"] and math.isfinite(x["value"]) for x in one[name])
        assert all(1 <= len(x["text"]) <= 512 for x in one["explanations"])
        for activation in one["activations"]:
            assert 1 <= len(activation["tokens"]) == len(activation["values"]) <= 1024 and all(activation["tokens"])
            if "quantileFraction" in activation:
                assert 0 <= activation["quantileFraction"] <= 1
                assert activation["quantileMin"] <= activation["quantileMax"]


class EmptyTokens:
    """Contexts with tokens of no text, and one window that is too long."""

    def contexts(self, latent):
        from dictionary_learning.interpretation import Example

        window = Example(torch.zeros(1100, dtype=torch.long), torch.ones(1100), 4, 0, 9)
        return LatentContexts((window,), (), ())

    def token_text(self, ids):
        return [""] * len(ids)

    window_text = token_text


@pytest.mark.parametrize(
    "changes", [{}, {"contexts": EmptyTokens()}, {"effects": None}], ids=["all", "empty tokens", "no effects"]
)
def test_bodies_keep_the_rules_of_the_site(changes):
    bodies = list(upload_batches(facts(**changes), **PLACE))
    assert [len(body["features"]) for body in bodies] == [SIZE - 1]  # one was never active
    for body in bodies:
        check_by_their_schema(json.loads(json.dumps(body, allow_nan=False)))


def test_bodies_are_of_limited_size(monkeypatch):
    whole = list(upload_batches(facts(), **PLACE))
    monkeypatch.setattr("dictionary_learning.exports._neuronpedia_upload._MOST_BYTES", 40_000)
    bodies = list(upload_batches(facts(), **PLACE))
    assert len(bodies) > 3 and all(len(json.dumps(body)) < 42_000 for body in bodies)
    assert [f for body in bodies for f in body["features"]] == whole[0]["features"]
    monkeypatch.setattr("dictionary_learning.exports._neuronpedia_upload._MOST_BYTES", 10)
    assert len(list(upload_batches(facts(), **PLACE))) == SIZE - 1


def test_upload_sends_each_batch_once(waits, tmp_path):
    replies = [Reply({"error": "busy"}, 503), Reply({"message": "21 features created."})]
    with serving(lambda request, n: replies[n]) as stub:
        url = stub.url.removesuffix("/v1")
        assert upload_to_neuronpedia(facts(), **PLACE, url=url, folder=tmp_path) == SIZE - 1
        assert upload_to_neuronpedia(facts(), **PLACE, url=url, folder=tmp_path) == 0
    assert len(stub.requests) == 2 and len(waits) == 1
    assert stub.requests[1].path == "/api/feature/upload-batch"
    assert {name.lower(): value for name, value in stub.requests[1].headers.items()}["x-api-key"] == SECRET
    check_by_their_schema(stub.requests[1].body)
    assert SECRET not in (tmp_path / "uploaded.jsonl").read_text()


def test_what_the_site_refuses_is_said(waits):
    said = Reply({"error": "Source set not found."}, 400)
    with serving(lambda request, n: said) as stub, pytest.raises(Refused, match=r"400\): Source set not found\. "):
        upload_to_neuronpedia(facts(), **PLACE, url=stub.url)
    wrong = Reply({"error": f"bad key {SECRET}"}, 401)
    with serving(lambda request, n: wrong) as stub, pytest.raises(ModelError, match="NEURONPEDIA_API_KEY") as found:
        upload_to_neuronpedia(facts(), **PLACE, url=stub.url)
    assert SECRET not in str(found.value)


def test_upload_needs_a_key(monkeypatch):
    monkeypatch.delenv("NEURONPEDIA_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="NEURONPEDIA_API_KEY is not set"):
        upload_to_neuronpedia(facts(), **PLACE)
    with pytest.raises(ConfigError) as found:
        upload_to_neuronpedia(facts(), **PLACE, key_variable="sk-1234")
    assert "1234" not in str(found.value)


@pytest.mark.parametrize(
    "wrong",
    [{"model_id": "GPT2"}, {"model_id": "a/b"}, {"model_id": ""}, {"model_id": "x" * 33}, {"source_set": "a--b"}, {"source_set": "-a"},
     {"source_set": "neurons"}, {"layer": -1}, {"layer": 127}, {"latents": [22]}, {"latents": []}, {"latents": [-1]}],
    ids=str,
)  # fmt: skip
def test_wrong_places_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError):
        write_neuronpedia(facts(), tmp_path / "new", **{**PLACE, **wrong})
    assert not (tmp_path / "new").exists()


def test_dashboard_files_have_true_quantiles_and_exact_densities(tmp_path):
    write_sae_dashboard(facts(), tmp_path, layer=5)
    batch = json.loads((tmp_path / "batch-0.json").read_text())
    assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("tiny", 5, "top_k")
    assert [one["feature_index"] for one in batch["features"]] == list(range(SIZE - 1))
    assert json.loads((tmp_path / "skipped_indexes.json").read_text())["skipped_indexes"] == [SIZE - 1]
    one = batch["features"][3]
    histogram = statistics().histogram[3]
    assert one["frac_nonzero"] == pytest.approx(int(histogram.sum()) / 10_000)
    assert one["freq_hist_data_bar_heights"] == histogram.tolist()
    assert one["freq_hist_data_bar_values"] == pytest.approx([(n + 0.5) * 0.8 for n in range(20)])
    assert len(one["nearest_features_indices"]) == 3 and one["correlated_features_indices"] == []
    groups = {(a["bin_min"], a["bin_max"], a["bin_contains"]) for a in one["activations"]}
    assert {share for _, _, share in groups} == {-1, 0.25} and len(groups) == 5
    assert len(one["neuron_alignment_indices"]) == 3


def test_edges_cut_the_histogram_into_equal_shares():
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(200_000, generator=generator) ** 3 * 10
    counts = torch.histc(values, bins=64, min=0, max=16).long().tolist()
    edges = quantile_edges(counts, 16.0, 5, float(values.max()))
    exact = torch.quantile(values[:100_000], torch.tensor([0.8, 0.6, 0.4, 0.2])).tolist()
    assert edges[0] == float(values.max()) and edges[-1] == 0
    assert edges[1:-1] == pytest.approx(exact, abs=16 / 64)
    assert quantile_edges([0, 0], 1.0, 3, 0.0) == [0, 0, 0, 0] and quantile_edges([], 0.0, 1, 0.0) == [0, 0]
    assert quantile_edges([4], 1.0, 2, 1.0) == [1, 0.5, 0]


def test_numbers_are_whole_json():
    odd = statistics()._replace(mean=torch.full((SIZE,), float("nan")))
    page = page_of(facts(statistics=odd), 3)
    assert page.mean == 0.0 and json.dumps(page, allow_nan=False)


def test_facts_of_other_dictionaries_are_refused():
    with pytest.raises(ConfigError, match="neighbors of 5"):
        given = facts()
        facts(neighbors=type(given.neighbors)(*(t[:5] for t in given.neighbors)))
    with pytest.raises(ConfigError, match="store"):
        LatentFacts.of_store(5)


def test_older_names_write_the_same_bytes(tmp_path):
    older = {"model": PLACE["model_id"], **{name: value for name, value in PLACE.items() if name != "model_id"}}
    for number, given in enumerate((PLACE, older)):
        write_neuronpedia(facts(), tmp_path / str(number), **given, created=TIME)
        write_sae_dashboard(facts(), tmp_path / str(number) / "sae", **given)
    files = [
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in "01"
    ]
    assert files[0] == files[1] and len(files[0]) > 5
    assert next(iter(upload_batches(facts(), **PLACE)))["modelId"] == "tiny-model"
    with pytest.raises(ConfigError, match="model and model_id, which are one argument of write_neuronpedia"):
        write_neuronpedia(facts(), tmp_path / "new", **PLACE, model="other")


def test_pages_of_a_model_without_a_name_need_an_id(tmp_path):
    unnamed = dataclasses.replace(facts(), model="")
    with pytest.raises(ConfigError, match="Give model_id="):
        write_sae_dashboard(unnamed, tmp_path / "sae")
    assert not (tmp_path / "sae").exists()
    write_sae_dashboard(unnamed, tmp_path / "sae", model_id="tiny")
