"""What a dashboard's folder holds."""

import base64
import json
import re

import numpy as np
import pytest
import torch

from dictionary_learning.dashboards import write_dashboard
from dictionary_learning.dashboards._panels import score_of
from dictionary_learning.dashboards._scripts import as_script, number
from dictionary_learning.errors import ConfigError
from dictionary_learning.interpretation import Explanation, Neighbors
from tests.dashboards import fake


def data(path):
    text = path.read_text()
    return json.loads(re.fullmatch(r'receive\("[^"]+", (.*)\);\n', text, re.S)[1])


def test_columns_are_the_statistics(folder):
    columns = data(folder / "data" / "0" / "columns.js")
    page = fake.page()
    for name, tensor in (("density", page.statistics.density), ("maximum", page.statistics.maximum)):
        found = np.frombuffer(base64.b64decode(columns[name]), dtype="<f4")
        assert torch.equal(torch.tensor(found), tensor)
    scores = torch.tensor(np.frombuffer(base64.b64decode(columns["score"]), dtype="<f4").copy())
    assert scores[1:3].tolist() == pytest.approx([0.7, 0.25]) and scores[4:].isnan().all()


def test_panels_hold_every_example(folder):
    for latent in (0, 5, 99):
        file = data(folder / "data" / "0" / f"panels-{latent // 32}.js")
        panel, texts = file["latents"][latent % 32], file["tokens"]
        expected = fake.contexts(latent, fake.page().statistics.maximum[latent].item())
        for (ids, places, values, peak, document, position), example in zip(panel["top"], expected.top, strict=True):
            assert [texts[i] for i in ids] == fake.token_text(example.token_ids.tolist())
            made = torch.zeros(fake.WINDOW)
            made[places] = torch.tensor(values, dtype=torch.float)
            torch.testing.assert_close(made, example.activations, rtol=1e-3, atol=0)
            assert (peak, document, position) == (example.peak, example.document, example.position)


def test_scripts_hold_nothing_that_could_end_them(folder):
    for path in folder.glob("data/**/*.js"):
        text = path.read_bytes()
        assert text.isascii() and b"<" not in text and b">" not in text
    assert json.loads(as_script({"a": fake.CLOSING + "\u2028"})) == {"a": fake.CLOSING + "\u2028"}


def test_numbers_are_short_and_finite():
    assert [number(x) for x in (1.23456, 3.0, 1e-9, float("nan"), float("inf"))] == [1.235, 3, 1e-9, None, None]


def test_score_is_the_best_mean():
    said = [Explanation("a", "x", {"a": 1.0, "b": 0.0}), Explanation("b", "x", {"a": 0.75}), Explanation("c", "x", {})]
    assert score_of(said) == 0.75 and np.isnan(score_of(said[2:]))


def test_a_dashboard_is_replaced_and_other_folders_are_not(tmp_path):
    write_dashboard([fake.page(size=70)], tmp_path / "pages")
    assert (tmp_path / "pages/data/0/panels-2.js").is_file()
    first = write_dashboard([fake.page(size=10)], tmp_path / "pages")
    assert first == tmp_path / "pages/index.html" and first.is_file()
    assert [path.name for path in (tmp_path / "pages/data/0").glob("panels*")] == ["panels-0.js"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds other files"):
        write_dashboard([fake.page(size=10)], tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_writer_that_fails_leaves_the_old_pages(tmp_path):
    write_dashboard([fake.page(size=10)], tmp_path)
    before = (tmp_path / "data/manifest.js").read_text()

    def contexts(latent: int):
        if latent == 35:
            raise OSError("the disk is gone")
        return fake.contexts(latent, 1.0)

    with pytest.raises(ConfigError, match="the disk is gone"):
        write_dashboard([fake.page("other", 40, contexts=contexts)], tmp_path)
    assert (tmp_path / "data/manifest.js").read_text() == before
    assert write_dashboard([fake.page("other", 10)], tmp_path).is_file()
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_pages_that_do_not_fit_are_refused(tmp_path):
    short = Neighbors(torch.zeros(9, 2, dtype=torch.long), torch.zeros(9, 2))
    for given, message in (
        ({"neighbors": short}, "its neighbors are of 9 latents"),
        ({"map": torch.zeros(3, 2)}, "its map are of 3"),
        ({"explanations": {10: []}}, "explains latent 10"),
        ({"name": ""}, "without a name"),
    ):
        with pytest.raises(ConfigError, match=message):
            fake.page(size=10, **given)
    for pages, message in (
        ([], "no page"),
        ([fake.page(size=10)] * 2, "Two pages"),
        ([fake.page(size=9, matches={"b": short})], "matches in 'b'"),
    ):
        with pytest.raises(ConfigError, match=message):
            write_dashboard(pages, tmp_path / "new")
    assert not (tmp_path / "new").exists()
