"""A picture of a latent, whatever its tokens are."""

import itertools

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from dictionary_learning.errors import ConfigError
from dictionary_learning.exports import write_latent_picture
from dictionary_learning.exports._facts import Shown, page_of
from dictionary_learning.exports._picture import (
    _COLUMNS,
    _DPI,
    _STEP,
    _WIDTH,
    _drawn,
    _pieces,
    _three,
    drawable,
    example_font,
)
from dictionary_learning.interpretation import Explanation
from tests.exports.planted_facts import facts
from tests.interpretation.planted import PlantedContexts

ODD = ["$x^2$", "\\frac{1}", "$", "\n", "\t", "漢字", "\u202e", "\ud800", "", "<b>", "é", " ", "\x00", "🙂", "%"]


class OddTokens(PlantedContexts):
    def token_text(self, ids):
        return [ODD[int(i) % len(ODD)] for i in ids]


def pixels(path):
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).int()


@pytest.mark.parametrize("latent", [3, 21])
def test_picture_is_drawn(tmp_path, latent):
    path = write_latent_picture(facts(), latent, tmp_path / "new" / "a.png")
    found = pixels(path)
    assert found.shape[1] == 1430 and found.shape[0] > 400 and (found != 255).any()
    # where it is active, tokens have the warm color
    warm = (found[..., 0] > 200) & (found[..., 2] < 120)
    assert bool(warm.any())


def drawn(given, latent):
    figure = _drawn(given, page_of(given, latent))
    figure.canvas.draw()
    return [axes for axes in figure.axes if axes.get_xlabel()], [text.get_text() for text in figure.texts]


def test_axes_say_what_they_are_and_end_at_the_maximum():
    (first, second), texts = drawn(facts(), 3)
    assert (first.get_xlabel(), first.get_ylabel()) == ("activation, where active", "tokens (log scale)")
    assert (second.get_xlabel(), second.get_ylabel()) == ("added to logits", "vocabulary (log scale)")
    assert first.get_xscale() == "linear" and first.get_yscale() == "symlog"
    assert first.get_xlim() == (0, pytest.approx(10.4))  # of 16 in 20 bins; the maximum is 10
    assert [label.get_text() for label in first.get_yticklabels()] == ["0", "1", "10"]
    assert "promoted" in texts and "suppressed" in texts


def test_what_is_not_known_takes_no_place():
    axes, texts = drawn(facts(effects=None, model="some/where/models/SmolLM2"), 3)
    assert len(axes) == 1 and not {"promoted", "suppressed", "not known"} & set(texts)
    assert any(text.startswith("SmolLM2, model.layers.5 ") for text in texts)


def test_numbers_have_as_many_digits():
    assert [_three(value) for value in (6, 6.123, 35.71, 123.4, 0.5)] == ["6.00", "6.12", "35.7", "123", "0.500"]


@pytest.mark.parametrize("latent", range(22))
def test_ranges_of_quantiles_hold_their_examples_and_do_not_overlap(latent):
    groups = [group for group in page_of(facts(), latent).groups if group.share is not None]
    for group in groups:
        assert all(group.low <= one.values[one.peak] <= group.high for one in group.examples)
    assert all(after.high == group.low for group, after in itertools.pairwise(groups))


def test_odd_tokens_are_drawn_as_text(tmp_path):
    explained = {3: [Explanation("costs $5 and $6 \\alpha \n漢", "a", {"detection": 0.5})]}
    path = write_latent_picture(facts(contexts=OddTokens(), explanations=explained), 3, tmp_path / "a.png")
    assert path.stat().st_size > 10_000


def test_settings_of_the_user_change_nothing(tmp_path):
    first = write_latent_picture(facts(), 3, tmp_path / "a.png").read_bytes()
    with matplotlib.rc_context({"text.usetex": True, "font.family": "serif", "savefig.dpi": 30, "figure.dpi": 30}):
        assert write_latent_picture(facts(), 3, tmp_path / "b.png").read_bytes() == first


def test_little_is_known(tmp_path):
    write_latent_picture(
        facts(effects=None, neighbors=None, directions=None, explanations={}, site="", model=""), 0, tmp_path / "a.png"
    )
    with pytest.raises(ConfigError, match="latents 0 to 21"):
        write_latent_picture(facts(), 22, tmp_path / "b.png")


def test_characters_that_the_font_lacks_are_boxes():
    assert drawable("é\n漢🙂\ud800\x00") == "é↵□□□□"


@pytest.mark.parametrize("peak", [0, 50, 99])
def test_peak_of_a_long_example_is_shown(peak):
    example = Shown([f" w{n:03}" for n in range(100)], [float(n == peak) for n in range(100)], peak)
    pieces = _pieces(example, 1.0)
    assert [text for _, text, share in pieces if share == 1] == [f" w{peak:03}"]
    assert all(0 <= column <= _COLUMNS - len(text) for column, text, _ in pieces)


@pytest.mark.parametrize("letter", ["m", "i", "L", "W", "\u25a1"])
def test_a_text_is_as_wide_as_its_place(letter):
    """Widths of characters are rounded to dots, which add up over a long token."""
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(_WIDTH, 4), dpi=_DPI)
        renderer = FigureCanvasAgg(figure).get_renderer()
        font = example_font()
        for n in (1, 7, _COLUMNS // 2, _COLUMNS):
            wide = (
                figure.text(0, 0.5, letter * n, fontproperties=font, parse_math=False).get_window_extent(renderer).width
            )
            assert wide == pytest.approx(n * _STEP * _DPI, abs=1)
    assert 0.95 + _COLUMNS * _STEP < _WIDTH
