"""Colored texts, and what a model predicts of them."""

import math
import re

import pytest
import torch

from dictionary_learning import AutoEncoderTopK, DictionaryInfo, load_model
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.interpretation import latent_view, show_tokens, test_prompt as answer_of, token_predictions
from dictionary_learning.interpretation._token_views import visible
from tests import tiny
from tests.dashboards.fake import EVIL

TEXT = "w1 w5 w9 w2 w5"


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model("gpt2"), tokenizer=tiny.tokenizer(bos=False))


def shares(html: str) -> list[float]:
    """Returns the share of the full color of each token."""
    found = re.findall(r'<span class="t" tabindex="0"(?: style="background:rgb\([\d ]+/([\d.]+)\)")?', html)
    return [float(share or 0) / 0.75 for share in found]


def test_color_is_the_share_of_the_largest_value():
    values = torch.tensor([0.0, 1.0, -4.0, 2.0, float("nan")])
    html = show_tokens(list("abcde"), values).html
    assert shares(html) == pytest.approx([0, 0.25, 1, 0.5, 0], abs=1e-3)  # written with three digits
    assert html.count("60 135 215") == 1  # the negative one
    assert shares(show_tokens(list("abcde"), values, largest=8.0).html) == pytest.approx(
        [0, 0.125, 0.5, 0.25, 0], abs=1e-3
    )


def test_texts_are_escaped_everywhere():
    view = show_tokens([EVIL, "b"], {EVIL: [1, 2], "other": [2, 1]}, tips=[EVIL, ""], title=EVIL)
    assert (
        "<img" not in view.html and view.html.count("&lt;img") == 8
    )  # title, name, and twice a token, its tip, and that of the caller
    assert "&lt;img" in show_tokens(["a"], {EVIL: [1]}).html


def test_what_cannot_be_seen_is_shown():
    assert [visible(text) for text in ("\n", "\t", "  a ", "", " ")] == ["↵", "→", "··a·", "∅", "·"]
    assert "<i>↵</i>" in show_tokens(["\n"], [1]).html


def test_view_is_shown_by_notebooks_and_saved(tmp_path):
    view = show_tokens(["a"], torch.ones(1))
    assert view._repr_html_() == view.html and len(repr(view)) < 100
    page = view.save(tmp_path / "view.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and view.html in page and "<script" not in page
    with pytest.raises(ConfigError, match="folder does not exist"):
        view.save(tmp_path / "nosuch" / "view.html")


def test_text_is_cut_by_the_tokenizer():
    html = show_tokens(TEXT, range(5), tokenizer=tiny.tokenizer(bos=False)).html
    assert "w9" in html and len(shares(html)) == 5
    with pytest.raises(ConfigError, match="no tokenizer"):
        show_tokens(TEXT, range(5))


@pytest.mark.parametrize(
    ("values", "given", "message"),
    [
        ([1.0], {}, "1 values for 2 tokens"),
        ({"a": [1, 2], "b": [1]}, {}, "1 values 'b' for 2"),
        ({}, {}, "0 series"),
        (torch.zeros(99, 2), {}, "99 series"),
        (["x", "y"], {}, "a number for each"),
        (5, {}, "a number for each"),
        ([1, 2], {"tips": ["a"]}, "values 'tips'"),
        ([1, 2], {"largest": 0.0}, "above 0"),
    ],
)
def test_values_that_do_not_fit_are_refused(values, given, message):
    with pytest.raises(ConfigError, match=message):
        show_tokens(["a", "b"], values, **given)


def test_predictions_are_those_of_the_plain_model(model):
    made = token_predictions(model, TEXT, n=4)
    ids = tiny.tokenizer(bos=False)(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        plain = tiny.model("gpt2").eval()(ids).logits[0].log_softmax(-1)
    assert torch.equal(made.input_ids, ids[0]) and made.tokens[1] == "w5"
    assert made.log_probs[0].isnan() and made.ranks[0] == -1
    for i in range(1, ids.shape[1]):
        row, token = plain[i - 1], ids[0, i]
        assert made.log_probs[i] == pytest.approx(row[token].item(), abs=1e-4)
        assert made.ranks[i] == (row > row[token]).sum()
        assert torch.equal(made.top_ids[i], row.topk(4).indices)
    assert len(shares(made.show().html)) == 5
    for n in (0, 10**6):
        with pytest.raises(ConfigError):
            token_predictions(model, TEXT, n=n)


def test_answer_has_the_rank_and_probability_of_the_plain_model(model):
    found = answer_of(model, "w1 w5 w9", ["w2 w7", "w3"], n=3)
    tokenizer, plain = tiny.tokenizer(bos=False), tiny.model("gpt2").eval()
    ids = tokenizer("w1 w5 w9 w2 w7", return_tensors="pt").input_ids
    with torch.no_grad():
        probabilities = plain(ids).logits[0].softmax(-1)
    for place, one in zip((2, 3), found.answers[0], strict=True):
        token = ids[0, place + 1]
        assert one.probability == pytest.approx(probabilities[place, token].item(), rel=1e-4)
        assert one.rank == (probabilities[place] > probabilities[place, token]).sum()
    product = math.prod(one.probability for one in found.answers[0])
    assert math.exp(found.log_probs[0]) == pytest.approx(product) and len(found.answers) == 2
    assert [one.rank for one in found.top] == [0, 1, 2] and found.top[0].token == found.answers[0][0].likeliest
    assert f"rank {found.answers[0][0].rank:>6}" in str(found) and "Next tokens:" in str(found)
    with pytest.raises(DataError, match="no token"):
        answer_of(model, "w1", "")


def test_view_of_latents_has_their_activations(model):
    site = "transformer.h.1:out"
    dictionary = AutoEncoderTopK(tiny.DIM, 32, 4)
    dictionary.info = DictionaryInfo(sites=(site,))
    ids = tiny.tokenizer(bos=False)(TEXT, return_tensors="pt").input_ids
    x = model.capture(ids, None, site)[site][0]
    dense = dictionary.encode(x)
    latent = int(dense.max(0).values.argmax())
    html = latent_view(model, dictionary, TEXT, [latent, 0]).html
    assert html.count('type="radio"') == 2
    expected = dense[:, latent] / dense[:, latent].max()
    assert shares(html)[:5] == pytest.approx(expected.tolist(), abs=2e-3)
    with pytest.raises(ConfigError, match="latent 32"):
        latent_view(model, dictionary, TEXT, 32)
