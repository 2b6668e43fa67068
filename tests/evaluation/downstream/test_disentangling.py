"""Attributes of entities, with a table that a random model knows because it was asked for it."""

import numpy as np
import pytest
import torch

from dictionary_learning import AutoEncoderTopK, Candidate
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation.downstream import DisentanglingConfig, disentangle_attributes
from dictionary_learning.evaluation.downstream._disentangling import spread_between
from dictionary_learning.evaluation.downstream._entities import CITY_PROMPTS, as_entities, cities
from tests import tiny
from tests.evaluation.downstream.planted import SITE, loud_words, model, speller

PROMPTS = {"one": "{} w1 w2", "two": "{} w3 w4 w5"}
CONFIG = DisentanglingConfig(ns=(1, 8), n_pairs=20, n_resamples=50)
NAMES = [f"w{n}" for n in range(10, 40)]


def told(traced, names=NAMES):
    """Returns what the model itself says of each entity."""
    table = {}
    for name in names:
        row = {}
        for attribute, prompt in PROMPTS.items():
            ids = torch.tensor([[0, *traced.tokenizer(prompt.format(name), add_special_tokens=False)["input_ids"]]])
            row[attribute] = tiny.WORDS[int(traced.run(ids)[0, -1, 3:].argmax())]
        table[name] = row
    return table


def test_changing_everything_and_nothing_scores_a_half():
    traced = model()
    words = loud_words(traced, 2)
    assert not set(words) & set(NAMES)  # so that the dictionary is silent on all entities
    silent = speller(traced, words)
    report = disentangle_attributes(traced, Candidate("d", silent, SITE), told(traced), CONFIG, prompts=PROMPTS)
    assert report.n_entities == len(NAMES) and report.attributes == ("one", "two")
    found = {(one.name, one.k): one.metrics for one in report.scores}
    # the embedding of an entity is all that prompts differ in
    assert found["all activations", None] == {"score": 0.5, "cause": 1.0, "isolation": 0.0}
    assert found["d", 8] == {"score": 0.5, "cause": 0.0, "isolation": 1.0}
    assert {one.role for one in report.scores} == {"dictionary", "random", "pca", "dense"}


def test_scores_are_means_of_cause_and_isolation():
    traced = model()
    made = AutoEncoderTopK(tiny.DIM, 24, 4)
    report = disentangle_attributes(
        traced, Candidate("d", made, "model.layers.0"), told(traced), CONFIG, prompts=PROMPTS
    )
    for one in report.scores:
        assert one.metrics["score"] == pytest.approx((one.metrics["cause"] + one.metrics["isolation"]) / 2)
        assert one.errors is None or set(one.errors) <= {"score", "cause", "isolation"}


def test_a_dictionary_may_have_the_name_of_a_random_one():
    traced, made = model(), AutoEncoderTopK(tiny.DIM, 24, 4)
    candidates = [Candidate("d", made, SITE), Candidate("random like d", made, "model.layers.0")]
    report = disentangle_attributes(traced, candidates, told(traced), CONFIG, prompts=PROMPTS)
    names = [(one.name, one.k) for one in report.scores if one.role in ("random", "dictionary")]
    assert len(names) == len(set(names)) == 8


def test_spread_is_the_share_of_variance_between_groups():
    x, groups = np.random.default_rng(0).normal(size=(30, 3)), np.arange(30) % 4
    x[:, 2] = groups
    for column in range(3):
        values = x[:, column]
        means = np.array([values[groups == g].mean() for g in groups])
        assert spread_between(x, groups)[column] == pytest.approx(means.var() / values.var())
    assert spread_between(np.ones((4, 1)), np.array([0, 1, 0, 1]))[0] == 0


def test_cities_have_all_attributes_and_few_values():
    found = cities()
    assert len(found.table) == 61 and set(found.prompts) == set(CITY_PROMPTS)
    assert all(set(row) == set(CITY_PROMPTS) and all(row.values()) for row in found.table.values())
    assert found.table["Rio de Janeiro"] == {
        "country": "Brazil",
        "continent": "South America",
        "language": "Portuguese",
    }


def test_cities_may_have_other_prompts():
    prompts = {"country": "{} is in", "language": "In {} people speak"}
    assert as_entities(None, prompts) == (cities().table, prompts)
    assert as_entities(None, None) == cities()


def test_entities_of_rows_and_files_are_those_of_a_mapping(tmp_path):
    table = {"w1": {"one": "w2", "two": "w3"}, "w4": {"one": "w5", "two": "w6"}}
    rows = [{"entity": name, **row} for name, row in table.items()]
    (tmp_path / "a.csv").write_text("entity,one,two\nw1,w2,w3\nw4,w5,w6\n")
    for given in (table, rows, tmp_path / "a.csv"):
        assert as_entities(given, PROMPTS).table == table


@pytest.mark.parametrize(
    ("given", "prompts", "error", "said"),
    [
        ({"w1": {"one": "w2"}}, PROMPTS, DataError, "'two'"),
        ({"w1": {"one": "", "two": "w2"}}, PROMPTS, DataError, "''"),
        ([{"name": "w1"}], PROMPTS, DataError, "column 'entity'"),
        ({"w1": {"one": "w2"}}, {"one": "{}"}, ConfigError, "at least two"),
        ({"w1": {"one": "w2"}}, None, ConfigError, "prompts=None"),
        ({"w1": {}}, {"one": "x", "two": "{}"}, ConfigError, "has to stand once"),
        (None, {"country": "{} is in", "mayor": "{}'s mayor is"}, DataError, "has None as 'mayor'"),
        (None, {"country": "{} is in"}, ConfigError, "at least two"),
        (None, {}, ConfigError, "at least two"),
        (None, {"country": "{} is in", "language": "People speak"}, ConfigError, "has to stand once"),
    ],
)
def test_wrong_entities_are_refused(given, prompts, error, said):
    with pytest.raises(error, match=said):
        as_entities(given, prompts)


def test_a_model_that_knows_too_few_has_no_figure():
    traced = model()
    table = told(traced)
    wrong = dict(zip(table, [*list(table.values())[1:], table[NAMES[0]]], strict=True))
    candidate = Candidate("d", AutoEncoderTopK(tiny.DIM, 24, 4), SITE)
    with pytest.raises(DataError, match="knows all attributes of"):
        disentangle_attributes(traced, candidate, wrong, prompts=PROMPTS)
    with pytest.raises(ConfigError, match="ns"):
        CONFIG.replace(ns=(0,))
