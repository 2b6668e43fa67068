"""A sweep trains what it names, on the same rows in however many groups, resumes, and counts right."""

import csv
import io
import json
import logging
import math
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

from dictionary_learning import (
    ActivationBuffer,
    ContextStream,
    EvaluationConfig,
    evaluate_activations,
    evaluate_dictionaries,
    load_dictionary,
    load_model,
    trainSAE,
    write_cache,
)
from dictionary_learning._what_is import what_is
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.cli import main
from dictionary_learning.cli._options import CaptureArguments
from dictionary_learning.cli._sweep import read_sweep_file
from dictionary_learning.errors import ConfigError, DivergenceError, Interrupted, UnknownNameError
from dictionary_learning.evaluation import Candidate
from dictionary_learning.sweeps import Row, SweepConfig, SweepResult, _tables as tables, run_sweep
from dictionary_learning.sweeps._known_methods import points_of
from dictionary_learning.sweeps._report import write_sweep_report
from dictionary_learning.sweeps._results import Summary, importance, pareto, summaries
from dictionary_learning.synthetic import as_case
from dictionary_learning.trainers import TRAINERS
from dictionary_learning.trainers.recipes import RECIPES
from tests import tiny
from tests.contracts.test_paths import METHODS, options_of
from tests.contracts.test_trainers import family
from tests.tiny import Planted

STEPS = 6


SMALL = {"methods": {"top_k": {"k": [2, 4]}}, "grid": {"dict_size": [48, 96], "seed": [0, 1]}}
SITE = "model.layers.1"
READING = {"ctx_len": 16, "refresh_batch_size": 4}


def planted() -> list[torch.Tensor]:
    return list(Planted().batches(STEPS, 64))


def held() -> list[torch.Tensor]:
    return list(Planted().batches(STEPS + 2, 64))[STEPS:]


def sweep(folder, config=SMALL, data=None, **options):
    data = planted() if data is None else data
    given = {"evaluation_data": held(), "progress": False, "device": "cpu", "memory_gb": 1.0, **options}
    return run_sweep(config, data, STEPS, folder, **given)


def assert_same_bits(one, other) -> None:
    assert type(one) is type(other)
    for (name, tensor), (_, same) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(tensor, same), name


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.covering(shows=lambda name: {family(name)})  # lists are put together before a method is known
def test_every_combination_is_what_it_names(name, tmp_path):
    cls = TRAINERS[name]
    options = {key: value for key, value in options_of(cls.Config).items() if key != "seed"}
    lists = {"seed": [3, 4], "lr": [1e-3, 2e-3]}
    result = sweep(tmp_path, {"methods": {name: {**options, **lists}}})
    assert [row.factors for row in result.rows] == [{"seed": s, "lr": r} for s in (3, 4) for r in (1e-3, 2e-3)]
    for row in result.rows:
        (expected,) = trainSAE(planted(), cls.Config(**options, **row.factors), STEPS, progress=False, device="cpu")
        found = load_dictionary(row.folder)
        assert_same_bits(expected, found)
        said, meant = found.info.config["trainer"], expected.info.config["trainer"]
        assert said["trainer_class"] == cls.__name__ and said["wandb_name"] == row.name
        assert {k: v for k, v in said.items() if k != "wandb_name"} == {
            k: v for k, v in meant.items() if k != "wandb_name"
        }
        assert row.figures["fvu"] == pytest.approx(evaluate_activations(found, held())["fvu"])
        assert row.name == f"{name} seed={row.factors['seed']} lr={row.factors['lr']}"


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_is_built_by_its_function(name):
    (point,) = SweepConfig(methods={"mine": {"recipe": name, "dict_size": 512}}).points()
    assert point.config == RECIPES[name](dict_size=512).replace(wandb_name="mine")
    (same,) = SweepConfig(methods={name: {"dict_size": 512}}).points()
    assert same.config.replace(wandb_name="mine") == point.config


def test_lists_are_values_unless_the_setting_is_a_list():
    def of(**settings):
        points = SweepConfig(methods={"matryoshka_batch_top_k": {"k": 4, **settings}}).points()
        return [point.config.group_fractions for point in points]

    assert of(group_fractions=[0.25, 0.75]) == [(0.25, 0.75)]
    assert of(group_fractions=[[0.25, 0.75], [0.5, 0.5]]) == [(0.25, 0.75), (0.5, 0.5)]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"methods": {"topk": {}}}, "Did you mean 'top_k'"),
        ({"methods": {"top_k": {"kk": 3}}}, "Unknown setting of the method 'top_k' 'kk'. Did you mean 'k'"),
        ({"methods": {"jump_relu": {}}, "grid": {"k": [3]}}, "has no setting 'k', which is one of"),
        ({"methods": {}}, "without methods"),
        ({"methods": {"top_k": {"k": [3, 3]}}}, "'top_k k=3' twice"),
        ({"methods": {"top_k": {"k": []}}}, "no value of 'k'"),
        ({"methods": {"top_k": {"k": "many"}}}, "must be int"),
        ({"methods": {"top_k": 3}}, "give a mapping"),
        ({"methods": {"a": {"trainer": "top_k", "recipe": "gao_2024"}}}, "trainer and recipe"),
        ({"methods": {"a": {"recipe": "gao_2023"}}}, "Did you mean 'gao_2024'"),
        ({"methods": {"top_k": {"seed": 1}}, "grid": {"seed": [2]}}, "in one place"),
        ({"method": {"top_k": {}}}, "Did you mean 'methods'"),
        ({"methods": {"top_k": {"k": 400, "dict_size": 64}}}, "'top_k' cannot be trained|cannot keep"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("as_for_a_user")
def test_what_cannot_be_meant_is_refused(config, said, tmp_path):
    with pytest.raises((ConfigError, UnknownNameError), match=said):
        sweep(tmp_path / "new", config)
    assert not list(tmp_path.glob("new/group_*"))


def test_groups_change_no_bit_and_hold_what_fits(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    together = sweep(tmp_path / "one")
    # a dictionary of 96 latents takes 4 * (weights, gradient, two moments) of 2 * 32 * 96 and biases
    apart = sweep(tmp_path / "several", memory_gb=4 * 4 * 2 * 32 * 96 * 2.5 / 1e9)
    assert {row.folder.parent.name for row in together.rows} == {"group_0"}
    assert len({row.folder.parent for row in apart.rows}) > 2
    for one, other in zip(together.rows, apart.rows, strict=True):
        assert one.name == other.name and one.figures == other.figures
        assert_same_bits(load_dictionary(one.folder), load_dictionary(other.folder))
    with pytest.raises(ConfigError, match=r"'top_k k=2 dict_size=48 seed=0' needs .*B, and the sweep has"):
        sweep(tmp_path / "none", memory_gb=1e-6)


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model(), tokenizer=tiny.tokenizer())


def buffer(model, sites=SITE):
    options = {"n_ctxs": 8, "out_batch_size": 32, "end_of_data": "repeat", "seed": 5}
    return ActivationBuffer(tiny.documents(30), model, sites, **READING, **options)


LIVE = EvaluationConfig(n_tokens=128, n_fidelity_tokens=64, ctx_len=16, batch_size=4)
TWO = {"methods": {"top_k": {"k": 2}, "standard": None}, "grid": {"dict_size": [32]}}


def test_a_buffer_serves_one_group_and_a_cache_of_it_several(model, tmp_path):
    text = tiny.documents(20, seed=5)
    options = {"evaluation_data": text, "evaluation": LIVE}
    sites = ["model.layers.0", SITE]
    together = sweep(tmp_path / "one", TWO, buffer(model, sites), **options)
    assert [row.site for row in together.rows] == ["model.layers.0:out", f"{SITE}:out"] * 2
    assert not (tmp_path / "one" / "activations").exists()
    apart = sweep(tmp_path / "several", TWO, buffer(model, sites), memory_gb=4 * 4 * 2 * 16 * 32 * 2.2 / 1e9, **options)
    assert len({row.folder.parent for row in apart.rows}) == 4
    cache = ActivationCache(tmp_path / "several" / "activations", out_batch_size=32, seed=5, end_of_data="repeat")
    configs = [{"trainer": "top_k", "k": 2, "dict_size": 32}, {"trainer": "standard", "dict_size": 32}]
    expected = trainSAE(cache, configs, STEPS, progress=False, device="cpu")
    for row, one in zip(apart.rows, expected, strict=True):
        assert_same_bits(load_dictionary(row.folder), one)
        entry = Candidate("a", one, row.site)
        report = evaluate_dictionaries(
            model, entry, text, LIVE, token_filter=cache.filter, norm_limits=cache.norm_limits
        )
        for key, value in report["dictionaries"][0]["metrics"].items():
            assert row.figures.get(key, math.nan) == pytest.approx(value, nan_ok=True), key


def test_other_data_return_to_their_beginning(model, tmp_path):
    write_cache(tmp_path / "cache", tiny.documents(40), model, SITE, **READING)

    def cache():
        return ActivationCache(tmp_path / "cache", out_batch_size=32, end_of_data="repeat")

    def contexts():
        return ContextStream(tiny.documents(30), model, SITE, ctx_len=16, batch_size=2, end_of_data="repeat")

    held_rows = [torch.randn(40, tiny.DIM, generator=torch.Generator().manual_seed(1))]
    config = {"methods": {"top_k": {"k": [2, 3], "dict_size": 32}}}
    little = 4 * 4 * 2 * 16 * 32 * 2.2 / 1e9
    for number, make in enumerate((cache, contexts, lambda: cache)):
        given = {"evaluation_data": cache() if make is not contexts else ["w1 w2 w3 w4 w5"] * 20}
        given |= {"evaluation": LIVE} if make is contexts else {"evaluation": EvaluationConfig(n_tokens=64)}
        both = [sweep(tmp_path / f"{number} {gb}", config, make(), **given, memory_gb=gb).rows for gb in (1.0, little)]
        for one, other in zip(*both, strict=True):
            assert_same_bits(load_dictionary(one.folder), load_dictionary(other.folder))
        assert both[1][0].folder.parent != both[1][1].folder.parent
    with pytest.raises(ConfigError, match="every group reads from its beginning"):
        sweep(tmp_path / "iterator", config, iter(planted()), evaluation_data=held_rows)
    read = buffer(model)
    next(read)
    with pytest.raises(ConfigError, match="a buffer that was read from"):
        sweep(tmp_path / "read", config, read, evaluation_data=held_rows)


class StopAt:
    """Stops the run after some `save`s of checkpoints, as a signal does."""

    def __init__(self, monkeypatch, at: int):
        from dictionary_learning import _resume

        save, self.n = _resume.RunCheckpoints.save, 0

        def counted(checkpoints, *given):
            self.n += 1
            if self.n == at:
                signal.raise_signal(signal.SIGTERM)
            return save(checkpoints, *given)

        monkeypatch.setattr(_resume.RunCheckpoints, "save", counted)


def test_a_sweep_that_is_stopped_goes_on_and_repeats_nothing(tmp_path, monkeypatch):
    little = 4 * 4 * 2 * 32 * 96 * 2.5 / 1e9
    whole = sweep(tmp_path / "whole", memory_gb=little, checkpoint_steps=2)
    folder, trained = tmp_path / "parts", []
    with monkeypatch.context() as patch:
        StopAt(patch, 5)  # in the second group: each has three checkpoints
        with pytest.raises(Interrupted) as stopped:
            sweep(folder, memory_gb=little, checkpoint_steps=2)
    assert stopped.value.folder == str(folder)
    assert (folder / "group_0" / "finished.json").exists() and not (folder / "group_1" / "finished.json").exists()
    assert "is a sweep that is not finished: 1 of " in what_is(folder) and "group_1 is at step 5 of 6" in what_is(
        folder
    )
    assert 'resume="auto"' in what_is(folder) and "is a sweep; give one of its runs" in what_is(tmp_path / "whole")
    assert f"'{folder / 'group_1'}' is a part of a sweep, at step 5 of 6" in what_is(folder / "group_1")
    before = {path: path.stat().st_mtime_ns for path in (folder / "group_0").rglob("*") if path.is_file()}
    from dictionary_learning.sweeps import _run

    train = _run.trainSAE
    monkeypatch.setattr(
        _run, "trainSAE", lambda *given, **options: trained.append(options["save_dir"].name) or train(*given, **options)
    )
    with pytest.raises(ConfigError, match=r"holds a sweep. Go on with it by resume='auto'"):
        sweep(folder, memory_gb=little)
    # the groups are those of the beginning, whatever memory there is
    parts = sweep(folder, memory_gb=1.0, checkpoint_steps=2, resume="auto")
    assert trained == [f"group_{n}" for n in range(1, len({row.folder.parent for row in whole.rows}))]
    assert {path: path.stat().st_mtime_ns for path in before if path.exists()} == {
        p: t for p, t in before.items() if p.exists()
    }
    for one, other in zip(whole.rows, parts.rows, strict=True):
        assert (one.folder / "dictionary.safetensors").read_bytes() == (
            other.folder / "dictionary.safetensors"
        ).read_bytes()
        assert one.figures == other.figures
    for name in ("sweep.tex", "sweep.csv"):
        assert (folder / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert not list(folder.glob("group_*/checkpoints/step_*"))


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_sweep_that_is_killed_between_its_files_goes_on(at, tmp_path, monkeypatch):
    """After the training of a group, after that is noted, after it is evaluated."""
    from dictionary_learning.sweeps import _run

    config = {"methods": {"top_k": {"k": [2, 4], "dict_size": 48}}}
    little = 4 * 4 * 2 * 32 * 48 * 2.5 / 1e9
    whole = sweep(tmp_path / "whole", config, memory_gb=little)
    write, n = _run.write_json, []

    def dies(*given):
        n.append(1)
        if len(n) == at:
            raise KeyboardInterrupt
        write(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_run, "write_json", dies)
        sweep(tmp_path / "parts", config, memory_gb=little)
    parts = sweep(tmp_path / "parts", config, memory_gb=little, resume="auto")
    for one, other in zip(whole.rows, parts.rows, strict=True):
        assert one.figures == other.figures
        assert_same_bits(load_dictionary(one.folder), load_dictionary(other.folder))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"config": {**SMALL, "grid": {"dict_size": [48, 96], "seed": [0, 2]}}}, r"grid.seed\[1\]: 1, now 2"),
        ({"normalize_activations": True}, "normalize_activations: False, now True"),
        ({"evaluation": EvaluationConfig(n_tokens=64)}, "evaluation: None, now"),
    ],
    ids=str,
)
def test_a_changed_sweep_is_refused_with_what_differs(changed, said, tmp_path):
    sweep(tmp_path)
    with pytest.raises(ConfigError, match=said):
        sweep(tmp_path, **{"config": SMALL, **changed}, resume="auto")


def test_what_diverges_costs_a_row_and_not_the_sweep(tmp_path, monkeypatch):
    from dictionary_learning.sweeps import _run

    def diverges(*given, save_dir, **options):
        train(*given, save_dir=save_dir, **options)
        shutil.rmtree(save_dir / "trainer_1")
        raise DivergenceError("One diverged. Lower its rate.", [])

    config = {"methods": {"top_k": {"k": 3, "dict_size": 48, "lr": [1e-3, 1e-2]}}}
    train = _run.trainSAE
    monkeypatch.setattr(_run, "trainSAE", diverges)
    result = sweep(tmp_path, config)
    good, bad = result.rows
    assert good.figures and not bad.figures
    assert "diverged" in (tmp_path / "sweep.md").read_text() and "1 diverged" in (tmp_path / "sweep.html").read_text()
    assert json.loads((tmp_path / "group_0" / "finished.json").read_text())["error"]
    assert sweep(tmp_path, config, resume="auto").rows == result.rows


def rows_of(table, **further) -> list[Row]:
    """Returns rows of (method, factors, l0, fvu)."""
    return [
        Row(
            str(n),
            method,
            factors,
            further.get("site", "a"),
            Path("s") / f"group_0/trainer_{n}",
            {"l0": l0, "fvu": fvu},
            {"fvu": 0.5},
        )
        for n, (method, factors, l0, fvu) in enumerate(table)
    ]


def test_a_setting_of_one_value_stands_in_the_column_that_others_vary():
    sweep = SweepConfig(
        methods={"top_k": {"k": [4, 8]}, "batch_top_k": {"k": 6}, "standard": {"lr": [1e-4, 3e-4]}},
        grid={"dict_size": 64},
    )
    rows = [
        Row(point.name, point.method, point.factors, "a", Path("s"), {"l0": 1.0, "fvu": 0.5}, {}, fixed=point.fixed)
        for point in sweep.points()
    ]
    head, cells = tables.cells(summaries(rows))
    column, rates = head.index("k"), head.index("lr")
    assert [row[column] for row in cells] == ["4", "8", "6", tables.DASH, tables.DASH]
    assert [row[rates] for row in cells][3:] == ["0.0001", "0.0003"]
    listed = list(csv.DictReader(io.StringIO(tables.as_csv(rows))))
    assert [one["k"] for one in listed] == ["4", "8", "6", "", ""]
    assert summaries(rows)[2].name == "batch_top_k"  # which is not varied there
    assert points_of(sweep, as_case("small"))[2].fixed["k"] == 6


def test_means_and_standard_errors_are_over_seeds():
    rows = rows_of([
        ("a", {"k": 1, "seed": 0}, 1.0, 0.2), ("a", {"k": 1, "seed": 1}, 3.0, 0.4), ("a", {"k": 1, "seed": 2}, 5.0, 0.9),
        ("a", {"k": 2, "seed": 0}, 2.0, 0.1),
    ])  # fmt: skip
    three, one = summaries(rows)
    assert (three.n, three.factors, three.means["fvu"]) == (3, {"k": 1}, pytest.approx(0.5))
    assert three.errors["fvu"] == pytest.approx(torch.tensor([0.2, 0.4, 0.9]).std().item() / 3**0.5)
    assert one.errors == {"fvu": 0.5}  # of the evaluation, where there is one seed


def test_pareto_front_is_that_of_brute_force():
    generator = torch.Generator().manual_seed(0)
    points = torch.randint(0, 6, (40, 2), generator=generator).double().tolist()
    found = [Summary("a", {}, "site", 1, {"l0": x, "fvu": y}, {}) for x, y in points]
    found.append(Summary("a", {}, "another site", 1, {"l0": 9.0, "fvu": 9.0}, {}))
    front = {
        i for i, (x, y) in enumerate(points)
        if not any((a < x and b <= y) or (a <= x and b < y) for a, b in points)
    }  # fmt: skip
    assert pareto(found, "fvu") == front | {40}
    higher = [one._replace(means={"l0": one.means["l0"], "fvu": -one.means["fvu"]}) for one in found]
    assert pareto(higher, "fvu", is_lower_better=False) == front | {40}


def test_shares_of_a_balanced_grid_are_an_analysis_of_variance():
    effects = {"k": {1: 0.0, 2: 1.0, 4: 5.0}, "width": {8: 0.0, 16: 2.0}}
    table = [
        ("a", {"k": k, "width": w, "seed": s}, 1.0, effects["k"][k] + effects["width"][w])
        for k in effects["k"] for w in effects["width"] for s in (0, 1)
    ]  # fmt: skip
    shares = {share.factor: share for share in importance(rows_of(table), "fvu")}
    variance = {name: torch.tensor(list(values.values())).var(correction=0).item() for name, values in effects.items()}
    total = sum(variance.values())
    assert shares["k"].share == pytest.approx(variance["k"] / total)
    assert shares["width"].share == pytest.approx(variance["width"] / total)
    assert shares["seed"].share == pytest.approx(0) and all(share.is_balanced for share in shares.values())
    assert not any(share.is_balanced for share in importance(rows_of(table[:-1]), "fvu"))
    methods = [*rows_of(table), *rows_of([("b", {"k": 1}, 1.0, 3.0)])]
    assert [share.factor for share in importance(methods, "fvu") if share.scope == ""] == ["method"]
    assert importance(rows_of([("a", {}, 1.0, 1.0)]), "fvu") == []


def test_reports_hold_every_figure_and_escape_names(tmp_path):
    name = "a<b>&_|$%"
    rows = rows_of([(name, {"k": 1, "seed": 0}, 2.0, 0.25), (name, {"k": 2, "seed": 0}, 4.0, 0.125)], site="m.<0>:out")
    result = SweepResult(tmp_path, [row._replace(folder=tmp_path / row.folder.relative_to("s")) for row in rows])
    paths = write_sweep_report(result)
    assert set(paths) == {"results.json", "sweep.md", "sweep.tex", "sweep.csv", "sweep.html"}
    page = paths["sweep.html"].read_text()
    assert (
        "<b>" not in page
        and "a&lt;b&gt;&amp;_|$%" in page
        and "<svg" in page
        and "http" not in page.replace("http://www.w3.org", "")
    )
    latex = paths["sweep.tex"].read_text()
    assert r"a<b>\&\_|\$\%" in latex and r"0.2500$\,\pm\,$0.5000" in latex
    assert "a<b>&_\\|$%" in paths["sweep.md"].read_text()
    read = list(csv.DictReader(paths["sweep.csv"].read_text().splitlines()))
    assert (
        [float(row["fvu"]) for row in read] == [0.25, 0.125]
        and read[0]["method"] == name
        and read[0]["fvu standard error"] == "0.5"
    )
    assert read[1]["folder"] == "group_0/trainer_1"
    document = json.loads(paths["results.json"].read_text())
    assert [one["figures"]["l0"] for one in document["dictionaries"]] == [2.0, 4.0] and document["schema_version"] == 1
    assert write_sweep_report(result)["sweep.html"].read_text() == page


@pytest.fixture
def file(model, tmp_path, monkeypatch):
    monkeypatch.setattr(CaptureArguments, "load", lambda self, model_: model)
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in tiny.documents(60)))
    content = {
        "model": "any", "data": str(tmp_path / "text.jsonl"), "sites": [SITE], "n_tokens": 192, "batch_size": 32, "n_ctxs": 8,
        "held_out_every": 5, "n_eval_tokens": 64, "n_fidelity_tokens": 64, "device": "cpu", **READING,
        "methods": {"top_k": {"k": [2, 4]}, "jump_relu": {"lr": ["1e-3"]}}, "grid": {"dict_size": [32], "seed": [0, 1]},
    }  # fmt: skip

    def write(**changed) -> str:
        kept = {name: value for name, value in {**content, **changed}.items() if value is not None}
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(kept, sort_keys=False).replace("'1e-3'", "1e-3"))
        return str(tmp_path / "sweep.yaml")

    return write


def test_the_shell_sweeps_and_resumes(file, tmp_path, capsys, caplog, monkeypatch):
    folder = tmp_path / "sweep"
    with monkeypatch.context() as patch:
        StopAt(patch, 2)
        assert main(["sweep", file(), "--save-dir", str(folder)]) == 75
    going_on = f"Go on with: dictionary-learning sweep {tmp_path}/sweep.yaml --save-dir {folder} --resume"
    for place in (folder, folder / "group_0"):
        for command in (["compare"], ["evaluate"], ["contexts", "--save-dir", str(tmp_path / "store")]):
            caplog.clear()
            assert main([*command, str(place)]) == 2 and "at step 3 of 6" in caplog.text and going_on in caplog.text
        assert main(["info", str(place)]) == 0
        shown = capsys.readouterr().out
        assert '"step": 3' in shown and going_on in shown
    assert main(["sweep", file(), "--save-dir", str(folder), "--resume"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "sweep.html")
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert [row["name"] for row in rows][:2] == ["top_k k=2 seed=0", "top_k k=2 seed=1"] and len(rows) == 6
    assert all(float(row["ce_increase"]) == float(row["ce_increase"]) for row in rows)
    # a group is a run: evaluate finds its model and its held-out text
    config = load_dictionary(folder / "group_0" / "trainer_4").info.config
    assert config["run"]["data"].endswith("text.jsonl") and config["trainer"]["lr"] == 1e-3
    assert config["trainer"]["trainer_class"] == TRAINERS["jump_relu"].__name__
    shutil.rmtree(folder / "group_0" / "trainer_4")
    (folder / "group_0" / "finished.json").unlink()
    assert main(["sweep", file(n_tokens=320), "--save-dir", str(folder), "--resume"]) == 2
    assert "steps: 6, now 10" in caplog.records[-1].getMessage()
    assert main(["sweep", file(), "--save-dir", str(folder)]) == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n_token": 5}, "Did you mean 'n_tokens'"),
        ({"methods": None}, "names no methods"),
        ({"methods": {"top_kk": {}}}, "Did you mean 'top_k'"),
        ({"save_dir": "x"}, "which a sweep decides itself"),
        ({"data": None}, "needs model and data"),
        ({"n_tokens": "many"}, "n_tokens is 'many'; it must be int"),
        ({"memory_gb": "1e-7"}, "and the sweep has"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("as_for_a_user")
def test_a_file_that_cannot_be_used_is_one_line(file, changed, said, caplog, tmp_path):
    assert main(["sweep", file(**changed), "--save-dir", str(tmp_path / "new")]) == 2
    assert re.search(said, caplog.records[-1].getMessage())


def test_files_that_are_no_yaml_are_refused(tmp_path):
    for content in ("a: [", "- 1", "", "\tx"):
        (tmp_path / "a.yaml").write_text(content)
        with pytest.raises(ConfigError, match="a.yaml' (cannot be read|is no mapping)"):
            read_sweep_file(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_sweep_file(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"resume": "never mind"}, "'never' or 'auto'"), ({"memory_gb": 0.0}, "above 0"), ({"evaluation_data": None}, "give evaluation_data")],
    ids=str,
)  # fmt: skip
def test_arguments_that_cannot_be_used_are_refused(options, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        sweep(tmp_path, **options)
