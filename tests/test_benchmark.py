"""A benchmark on known features trains what it is given, however it is given, and tells what came out."""

import csv
import dataclasses
import json
import logging
import re
import statistics
from pathlib import Path

import pytest
import torch
import yaml

from dictionary_learning import benchmark_synthetic, load_dictionary, trainSAE
from dictionary_learning.cli import main
from dictionary_learning.cli._benchmark import read_benchmark_file
from dictionary_learning.errors import ConfigError, UnknownNameError
from dictionary_learning.sweeps._known_methods import points_of
from dictionary_learning.synthetic import CASES, Case, SyntheticActivations, SyntheticConfig, as_case, ground_truth
from dictionary_learning.synthetic._data import effective_probabilities
from dictionary_learning.synthetic._score import ground_truths
from dictionary_learning.trainers import TRAINERS, TrainerTopK
from dictionary_learning.trainers.recipes import RECIPES

FILES = Path(__file__).parent.parent / "benchmarks" / "ground_truth"
FEATURES = SyntheticConfig(
    n_features=48, activation_dim=16, n_roots=2, branching=3, depth=1, correlation_rank=3, min_probability=0.02,
    batch_size=64,
)  # fmt: skip
TINY = Case(FEATURES, dict_size=24, k=3, n_tokens=256)
CALL = {"n_eval_tokens": 200, "progress": False, "device": "cpu"}
SHELL = ["--case", "tiny", "--n-eval-tokens", "200", "--device", "cpu"]


@pytest.fixture(autouse=True)
def tiny_case():
    CASES.register("tiny")(lambda: TINY)
    yield
    del CASES._entries["tiny"]


def run(methods, folder, case="tiny", **options):
    return benchmark_synthetic(methods, folder, case, **{**CALL, "seeds": (0,), **options})


def trained(config, seed=0, case=TINY):
    data = SyntheticActivations(case.features.replace(seed=seed))
    (dictionary,) = trainSAE(data, config, case.n_tokens // 64, progress=False, device="cpu")
    return dictionary, data


def weights(folder):
    return load_dictionary(folder).state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def by_shell(folder, *words):
    assert main(["benchmark", "synthetic", *words, *SHELL, "--seeds", "0", "--save-dir", str(folder)]) == 0
    return folder / "seed_0" / "trainer_0"


def test_every_way_to_say_a_method_trains_the_same_bits(tmp_path):
    settings = {"k": 2, "lr": 3e-3}
    expected, _ = trained({"trainer": "top_k", "dict_size": 24, **settings})
    ways = {
        "typed": TrainerTopK.Config(**settings),
        "dict": {"trainer": "top_k", **settings},
        "dict with a class": {"trainer": TrainerTopK, **settings},
        "list": [{"trainer": "top_k", **settings}],
        "sweep": {"methods": {"top_k": settings}},
    }
    for name, way in ways.items():
        result = run(way, tmp_path / name)
        assert [row.method for row in result.rows] == ["top_k"], name
        assert_same(weights(result.rows[0].folder), expected.state_dict())
    assert_same(
        weights(by_shell(tmp_path / "shell", "--trainer", "top_k", "--k", "2", "--lr", "3e-3")), expected.state_dict()
    )
    file = tmp_path / "benchmark.yaml"
    file.write_text("methods: {top_k: {k: 2, lr: 3e-3}}\ncase: tiny\nseeds: [0]\nn_eval_tokens: 200\ndevice: cpu\n")
    assert main(["benchmark", "synthetic", str(file), "--save-dir", str(tmp_path / "yaml")]) == 0
    assert_same(weights(tmp_path / "yaml" / "seed_0" / "trainer_0"), expected.state_dict())


def test_a_recipe_trains_the_same_by_name_config_shell_and_file(tmp_path):
    expected, _ = trained(RECIPES["bussmann_2024_batch_top_k"](k=3, dict_size=24))
    config = RECIPES["bussmann_2024_batch_top_k"](k=3)
    for name, way in {"config": config, "file": {"methods": {"bussmann_2024_batch_top_k": {"k": 3}}}}.items():
        assert_same(weights(run(way, tmp_path / name).rows[0].folder), expected.state_dict())
    shell = by_shell(tmp_path / "shell", "--recipe", "bussmann_2024_batch_top_k", "--k", "3")
    assert_same(weights(shell), expected.state_dict())
    named = run("bussmann_2024_batch_top_k", tmp_path / "named", Case(FEATURES, 24, 3, 256))
    assert named.rows[0].method == "bussmann_2024_batch_top_k"
    assert load_dictionary(named.rows[0].folder).k == RECIPES["bussmann_2024_batch_top_k"]().k or 3


def test_figures_are_those_of_the_score_on_held_out_rows(tmp_path):
    result = run(["top_k", "standard"], tmp_path / "a", seeds=(3, 5))
    assert [(row.method, row.factors) for row in result.rows] == [
        (method, {"seed": seed}) for seed in (3, 5) for method in ("top_k", "standard")
    ]
    for row in result.rows:
        seed = row.factors["seed"]
        dictionary, data = trained(
            TRAINERS[row.method].Config(dict_size=24, seed=seed, **({"k": 3} if row.method == "top_k" else {})), seed
        )
        assert_same(weights(row.folder), dictionary.state_dict())
        score = dataclasses.asdict(ground_truth(dictionary, data, n_tokens=200))
        assert score.pop("n_tokens") == 200
        assert row.figures == pytest.approx(score)
    (mean, _) = result.means()
    values = [row.figures["f1"] for row in result.rows if row.method == "top_k"]
    assert mean.means["f1"] == pytest.approx(statistics.mean(values))
    assert mean.errors["f1"] == pytest.approx(statistics.stdev(values) / 2**0.5)


def test_what_is_not_given_is_the_cases(tmp_path):
    result = run(["top_k", {"trainer": "batch_top_k", "k": 5, "dict_size": 40}], tmp_path / "a")
    first, second = (load_dictionary(row.folder) for row in result.rows)
    assert (first.k, first.dict_size, second.k, second.dict_size) == (3, 24, 5, 40)


def test_what_says_the_size_is_not_joined_by_the_cases(tmp_path):
    config = TrainerTopK.Config(expansion_factor=2)
    ways = {
        "typed": config,
        "dict": {"trainer": "top_k", "expansion_factor": 2},
        "sweep": {"methods": {"top_k": {"expansion_factor": 2}}},
    }
    expected, _ = trained(config.replace(k=3))
    assert expected.dict_size == 32
    for name, way in ways.items():
        assert_same(weights(run(way, tmp_path / name).rows[0].folder), expected.state_dict())
    shell = by_shell(tmp_path / "shell", "--trainer", "top_k", "--expansion-factor", "2")
    assert_same(weights(shell), expected.state_dict())
    start, _ = trained(TrainerTopK.Config(dict_size=40, k=5))
    again = load_dictionary(run(TrainerTopK.Config(finetune=start), tmp_path / "again").rows[0].folder)
    assert (again.dict_size, again.k) == (40, 5)


def test_the_report_says_the_same_in_every_form(tmp_path, capsys):
    words = ["--trainer", "top_k", "batch_top_k", "--k", "2", "4", *SHELL, "--seeds", "0", "1"]
    folder = tmp_path / "a"
    told = {}
    for form in ("page", "text", "json", "csv", "latex"):
        again = [] if form == "page" else ["--resume"]
        assert main(["benchmark", "synthetic", *words, "--save-dir", str(folder), "--format", form, *again]) == 0
        told[form] = capsys.readouterr().out
    assert told["page"].strip() == str(folder / "synthetic.html")
    document = json.loads(told["json"])
    assert len(document["dictionaries"]) == 8 and len(document["combinations"]) == 4
    assert document["benchmark"]["case"]["features"]["n_features"] == 48
    lines = list(csv.DictReader(told["csv"].splitlines()))
    for line, entry in zip(lines, document["dictionaries"], strict=True):
        assert float(line["f1"]) == entry["figures"]["f1"] and line["seed"] == str(entry["factors"]["seed"])
    page = (folder / "synthetic.html").read_text()
    for one in document["combinations"]:
        shown = f"{one['means']['mcc']:.3f}"
        for text in (told["text"], told["latex"], page):
            assert shown in text
    assert page.count("<svg") >= 3 and "Pareto" not in page + told["text"]
    assert not re.search(r"(src|href)=\"?https?:", page)


def test_a_benchmark_that_was_stopped_goes_on_and_repeats_nothing(tmp_path):
    whole = run(["top_k"], tmp_path / "whole", seeds=(0, 1))
    run(["top_k"], tmp_path / "part", seeds=(0, 1))
    weights_of_first = tmp_path / "part" / "seed_0" / "trainer_0" / "dictionary.safetensors"
    stamp = weights_of_first.stat().st_mtime_ns
    (tmp_path / "part" / "seed_1" / "ground_truth.json").unlink()
    again = run(["top_k"], tmp_path / "part", seeds=(0, 1), resume="auto")
    assert [row.figures for row in again.rows] == [row.figures for row in whole.rows]
    assert weights_of_first.stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="another sweep"):
        run(["top_k"], tmp_path / "part", seeds=(0, 1), resume="auto", n_tokens=640)
    with pytest.raises(ConfigError, match="resume='auto'"):
        run(["top_k"], tmp_path / "part", seeds=(0, 1))


@pytest.mark.parametrize(
    ("methods", "options", "said"),
    [
        ("topk", {}, "Did you mean 'top_k'"),
        ([], {}, "Got no method"),
        (3, {}, "Got 3 for methods"),
        (["top_k", "top_k"], {}, "twice"),
        ({"methods": {"top_k": {"seed": 3}}}, {}, "Give seeds"),
        ({"methods": {"top_k": {}}, "grid": {"seed": [0, 1]}}, {}, "Give seeds"),
        ("temporal", {}, "contexts"),
        ("end_to_end", {}, "contexts"),
        ({"trainer": "top_k", "k": 99}, {}, "cannot keep k=99"),
        ("top_k", {"seeds": ()}, "at least one"),
        ("top_k", {"seeds": (1, 1)}, "each once"),
        ("top_k", {"case": "tinny"}, "Did you mean 'tiny'"),
        ("top_k", {"case": 3}, "Got 3 for a synthetic case"),
        ("top_k", {"case": {"like": "tiny", "k": "many"}}, "k='many'"),
        ("top_k", {"n_tokens": 0}, "n_tokens"),
        ("top_k", {"n_eval_tokens": 0}, "n_eval_tokens"),
        ("top_k", {"case": TINY._replace(n_tokens=0)}, "n_tokens=0"),
        ("top_k", {"resume": "yes"}, "resume='yes'"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(methods, options, said, tmp_path):
    with pytest.raises((ConfigError, UnknownNameError), match=said):
        run(methods, tmp_path / "a", **options)
    assert "n_tokens" not in str(options) or not (tmp_path / "a").exists()  # before anything is trained


def test_a_case_may_be_a_mapping_of_another():
    case = as_case({"like": "tiny", "zipf_exponent": 1.0, "k": 4})
    assert case == TINY._replace(features=FEATURES.replace(zipf_exponent=1.0), k=4)
    assert as_case(FEATURES.to_dict()) == Case(FEATURES)
    with pytest.raises(UnknownNameError, match="n_features"):
        as_case({"like": "tiny", "n_featuers": 3})


def test_the_command_refuses_methods_beside_a_file(tmp_path, capsys, caplog):
    file = tmp_path / "benchmark.yaml"
    file.write_text(yaml.safe_dump({"methods": {"top_k": {}}, "case": "tiny"}))
    assert main(["benchmark", "synthetic", str(file), "--k", "3", "--save-dir", str(tmp_path / "a")]) == 2
    assert "beside" in caplog.text
    file.write_text("case: tiny\n")
    assert main(["benchmark", "synthetic", str(file)]) == 2
    assert "names no methods" in caplog.text
    file.write_text("methods: {top_k: {}}\nkase: tiny\n")
    assert main(["benchmark", "synthetic", str(file)]) == 2
    assert "has kase" in caplog.text


def test_the_case_of_sae_lens_has_the_stated_sizes():
    case = as_case("sae_lens_2k")
    features = case.features
    assert (features.n_features, features.activation_dim, features.zipf_exponent) == (2048, 128, 0.5)
    assert (features.branching, features.depth, features.batch_size) == (4, 3, 1024)
    assert (case.dict_size, case.k, case.n_tokens) == (512, 12, 1_500_000)
    assert float(effective_probabilities(features).sum()) == pytest.approx(case.k, abs=0.2)


@pytest.mark.parametrize("file", sorted(FILES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_files_of_settings_can_be_trained(file):
    told = read_benchmark_file(file)
    points = points_of({"methods": told["methods"]}, as_case(told["case"]))
    assert [point.method for point in points] == list(told["methods"])
    assert all(point.config.dict_size == as_case(told["case"]).dict_size for point in points)


def test_a_recipe_with_a_normalization_of_each_token_is_scored(tmp_path):
    folder = tmp_path / "gao"
    by_shell(folder, "--recipe", "gao_2024", "--format", "latex")
    (row,) = json.loads((folder / "results.json").read_text())["dictionaries"]
    data = SyntheticActivations(FEATURES.replace(seed=0))
    expected = dataclasses.asdict(ground_truth(load_dictionary(folder / "seed_0" / "trainer_0"), data, n_tokens=200))
    assert row["figures"] == pytest.approx({k: v for k, v in expected.items() if k != "n_tokens"})


def test_a_method_that_cannot_be_scored_costs_its_own_row(tmp_path, monkeypatch, caplog):
    def some(dictionaries, data, **options):
        found = ground_truths(dictionaries, data, **options)
        return [ConfigError("It has no decoder rows."), *found[1:]]

    monkeypatch.setattr("dictionary_learning.sweeps._synthetic.ground_truths", some)
    result = run(["top_k", "standard"], tmp_path)
    lost, kept = result.rows
    assert (dict(lost.figures), lost.missing) == ({}, "not scored") and kept.figures["f1"] >= 0
    assert "cannot be scored" in caplog.text and "It has no decoder rows." in caplog.text
    assert "| not scored |" in (tmp_path / "synthetic.md").read_text()
    assert "1 cannot be scored, and has no figures" in (tmp_path / "synthetic.html").read_text()


def test_each_seed_is_named_and_no_column_is_without_a_name(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run("top_k", tmp_path, seeds=(4, 7))
    said = [record.getMessage() for record in caplog.records]
    assert "A benchmark of 1 method, on 2 seeds: 4, 7." in said
    assert said.index("Seed 4, 1 of 2.") < said.index("Seed 7, 2 of 2.")
    head = next(line for line in (tmp_path / "synthetic.md").read_text().splitlines() if line.startswith("| method"))
    assert all(cell.strip() for cell in head.strip("|").split("|"))
    tex = (tmp_path / "synthetic.tex").read_text().splitlines()
    columns = tex[1].partition("}{")[2].rstrip("}")
    assert {len(line.split(" & ")) for line in tex if " & " in line} == {len(columns)}
