"""Texts as token ids: one rule for all that reads or continues a text."""

import pytest
import torch

from dictionary_learning import AutoEncoderTopK, load_model
from dictionary_learning.attribution import Placed, attribute, logit_difference
from dictionary_learning.errors import DataError
from dictionary_learning.interpretation import token_predictions
from dictionary_learning.interventions import generate, latent_edits_for, read_latents
from dictionary_learning.interventions._inputs import as_tokens
from tests import tiny

SITE = "model.layers.1"
DICTIONARY = AutoEncoderTopK(tiny.DIM, 32, 4)
FIRST = {
    "read_latents": lambda model, text: read_latents(model, DICTIONARY, text, site=SITE).input_ids[0],
    "latent_edits_for": lambda model, text: latent_edits_for(model, DICTIONARY, text, site=SITE, ablate=[1]).input_ids[0],
    "generate": lambda model, text: generate(model, text, max_new_tokens=1).input_ids[0],
    "token_predictions": lambda model, text: token_predictions(model, text).input_ids,
    "attribute": lambda model, text: attribute(
        model, Placed(DICTIONARY, SITE), text, logit_difference(3, 4), n_steps=1
    ).tokens.input_ids[0],
}  # fmt: skip


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("bos", [True, False])
def test_a_text_begins_with_bos_as_contexts_of_training_do(name, bos):
    model = load_model(tiny.model().eval(), tokenizer=tiny.tokenizer(bos=bos))
    ids = FIRST[name](model, "w1 w2 w3").tolist()
    expected = [0, 4, 5, 6] if bos else [4, 5, 6]
    assert ids[: len(expected)] == expected
    given = FIRST[name](model, torch.tensor([4, 5, 6])).tolist()
    assert given[:3] == [4, 5, 6]  # ids are taken as they are


def test_a_text_that_begins_with_bos_gets_no_second_one():
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
    ids, mask = as_tokens(model, ["<s> w1", "w1 w2 w3"], padding_side="left")
    assert ids.tolist() == [[2, 2, 0, 4], [0, 4, 5, 6]] and mask.sum(1).tolist() == [2, 4]
    with pytest.raises(DataError, match="has no token"):
        as_tokens(model, ["w1", ""])
