"""Padding, on either side, changes nothing for the tokens beside it."""

import pytest
import torch

from dictionary_learning import load_model
from dictionary_learning.errors import ModelError
from tests import tiny

IDS = torch.arange(3, 17).view(2, 7)
FAMILIES = [*tiny.FAMILIES, "opt", "bert", "roberta", "mistral", "phi", "bloom", "falcon", "gptj", "t5"]


def padded(side: str, width: int = 12) -> tuple[torch.Tensor, torch.Tensor, slice]:
    ids, mask = torch.full((2, width), 2), torch.zeros(2, width, dtype=torch.bool)
    span = slice(width - 7, width) if side == "left" else slice(0, 7)
    ids[:, span], mask[:, span] = IDS, True
    return ids, mask, span


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_left_padded_right_and_unpadded_agree(family):
    model = load_model(tiny.model(family))
    sites = [*model.layers(), *model.sites("embedding"), *model.sites(f"{model.layers()[1].path}:heads")]
    alone = model.capture(IDS, None, sites)
    logits = model.run(IDS, None)
    for side in ("left", "right"):
        ids, mask, span = padded(side)
        found = model.capture(ids, mask, sites)
        for site in sites:
            torch.testing.assert_close(found[site][:, span], alone[site], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.run(ids, mask)[:, span], logits, rtol=1e-4, atol=1e-3)


def test_rows_of_different_length_in_one_batch_agree_with_each_alone():
    model = load_model(tiny.model("gpt2"))
    site = model.layers()[1]
    ids, mask = torch.full((2, 7), 2), torch.ones(2, 7, dtype=torch.bool)
    ids[0], ids[1, 3:], mask[1, :3] = IDS[0], IDS[1, :4], False
    found = model.capture(ids, mask, [site])[site]
    torch.testing.assert_close(found[0], model.capture(IDS[:1], None, [site])[site][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1, 3:], model.capture(IDS[1:, :4], None, [site])[site][0], rtol=1e-4, atol=1e-4)


def test_padding_that_shifts_positions_is_refused():
    """BART has learnt positions that count from the first column, and takes no position_ids."""
    model = load_model(tiny.model("bart"))
    site = model.layers()[1]
    ids, mask, span = padded("right")
    alone = model.capture(IDS, None, [site])[site]
    torch.testing.assert_close(model.capture(ids, mask, [site])[site][:, span], alone, rtol=1e-4, atol=1e-4)
    for _ in range(2):  # and not only the first time
        with pytest.raises(ModelError, match="counts positions from the padding on. Pad on the right"):
            model.capture(*padded("left")[:2], [site])


def test_mask_that_a_model_ignores_is_warned_of(caplog):
    class Bag(torch.nn.Module):
        """Every token sees the mean of all, padding included."""

        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(97, 4)

        def forward(self, input_ids, attention_mask=None):
            x = self.embed(input_ids)
            return x + x.mean(1, keepdim=True)

    model = load_model(Bag())
    ids, mask, _ = padded("right")
    for _ in range(2):
        model.capture(ids, mask, model.sites("embed"))
    assert len([r for r in caplog.records if "padded on the right" in r.message]) == 1


def test_padding_that_a_tokenizer_gave_is_handled_alike():
    """A mapping from a tokenizer holds the mask, and no position ids."""
    model = load_model(tiny.model("gpt2"))
    site = model.layers()[1]
    ids, mask, span = padded("left")
    expected = model.capture(ids, mask, [site])[site]
    given = {"input_ids": ids, "attention_mask": mask.long()}
    assert torch.equal(model.capture(given, None, [site])[site], expected)
    alone = model.capture({"input_ids": IDS}, None, [site])[site]
    torch.testing.assert_close(expected[:, span], alone, rtol=1e-4, atol=1e-4)


class Counting(torch.nn.Module):
    """A language model of one's own: ids by position, learnt positions, no mask."""

    def __init__(self):
        super().__init__()
        self.embed, self.positions = torch.nn.Embedding(97, 4), torch.nn.Embedding(64, 4)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4)])

    def forward(self, idx):
        return self.blocks[0](self.embed(idx) + self.positions(torch.arange(idx.shape[1])))


def test_model_that_takes_no_mask_is_padded_on_the_right_only():
    model = load_model(Counting(), tokenizer=tiny.tokenizer())
    (site,) = model.layers()
    assert model.widths([site]) == {site: 4}  # with a tokenizer, it is fed token ids
    ids, mask, span = padded("right")
    alone = model.capture(IDS, None, [site])[site]
    torch.testing.assert_close(model.capture(ids, mask, [site])[site][:, span], alone)
    with pytest.raises(ModelError, match="Pad on the right"):
        model.capture(*padded("left")[:2], [site])


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_contexts_longer_than_a_table_of_positions_are_refused(family):
    model = load_model(tiny.model(family))
    assert model.longest_context == tiny.POSITIONS
    model.capture(torch.zeros(1, tiny.POSITIONS, dtype=torch.long), None, model.layers()[:1])
    with pytest.raises(ModelError, match=f"knows {tiny.POSITIONS} positions, and a context has 65"):
        model.capture(torch.zeros(1, tiny.POSITIONS + 1, dtype=torch.long), None, model.layers()[:1])


def test_contexts_longer_than_a_model_was_made_for_are_warned_of_once(caplog):
    model = load_model(tiny.model("llama"))
    for _ in range(2):
        model.capture(torch.zeros(1, tiny.POSITIONS + 1, dtype=torch.long), None, model.layers()[:1])
    assert sum("was made for contexts of at most 64 tokens" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("counts_from_padding", [False, True])
def test_padding_is_judged_by_the_logits_that_are_finite(counts_from_padding):
    """A masked vocabulary has logits of -inf, which are the same with and without padding."""

    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.positions = torch.nn.Embedding(97, 4), torch.nn.Embedding(64, 4)
            self.head = torch.nn.Linear(4, 97)

        def forward(self, input_ids, attention_mask=None):
            x = self.embed(input_ids)
            if counts_from_padding:
                x = x + self.positions(torch.arange(input_ids.shape[1]))
            return self.head(x).index_fill(-1, torch.arange(5), -torch.inf)

    torch.manual_seed(0)
    model = load_model(Masked())
    ids, mask, span = padded("left")
    if counts_from_padding:
        with pytest.raises(ModelError, match="Pad on the right"):
            model.capture(ids, mask, "embed")
    else:
        assert torch.equal(
            model.capture(ids, mask, "embed")["embed"][:, span], model.capture(IDS, None, "embed")["embed"]
        )
