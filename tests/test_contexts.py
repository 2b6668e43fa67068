"""Whole contexts of a model, in order."""

import torch

from dictionary_learning import ContextStream, load_model
from tests import tiny


def test_a_sample_reads_one_pass_of_a_text_that_repeats_and_is_served_later():
    """A small text would otherwise run through the model again and again, to fill the sample."""
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
    options = {"ctx_len": 16, "batch_size": 2, "predict": False}
    once = ContextStream(tiny.documents(10), model, "model.layers.1", **options)
    batches = [batch[once.sites[0]] for batch in once]
    rows = torch.cat(batches)
    repeated = ContextStream(tiny.documents(10), model, "model.layers.1", end_of_data="repeat", **options)
    sample = repeated.sample(100_000)[repeated.sites[0]]
    assert torch.equal(sample[: len(rows)], rows) and len(sample) <= len(rows) + 2 * 16
    served = torch.cat([next(repeated)[repeated.sites[0]] for _ in batches])
    assert torch.equal(served, rows)
