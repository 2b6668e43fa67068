"""What is left of latents where the text before a token is cut."""

import pytest
import torch

from dictionary_learning import AutoEncoderTopK, Candidate
from dictionary_learning.data import as_token_stream
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation.downstream import ContextConfig, context_sensitivity
from tests import tiny
from tests.evaluation.downstream.planted import SITE, model

CONFIG = ContextConfig(windows=(1, 3), n_tokens=30, ctx_len=8, n_resamples=50, batch_size=7)
TEXT = tiny.documents(60, 40, seed=4)


def by_name(report):
    return {(one.name, one.k): one.metrics for one in report.scores}


def test_embeddings_know_no_context():
    found = by_name(context_sensitivity(model(), Candidate("d", AutoEncoderTopK(tiny.DIM, 24, 4), SITE), TEXT, CONFIG))
    assert all(found["d", m] == {"kept": 1.0, "kept_mass": 1.0} for m in (1, 3))
    assert found["all activations", 1]["cosine"] == pytest.approx(1)
    assert found["random like d", 3]["kept"] == 1


def test_shares_are_those_of_single_tokens():
    traced, made = model(), AutoEncoderTopK(tiny.DIM, 24, 4)
    report = context_sensitivity(traced, Candidate("d", made, "model.layers.1"), TEXT, CONFIG)
    stream = as_token_stream(TEXT, traced.tokenizer, model=traced, fresh=True, ctx_len=8, pack=True)
    kept = active = 0
    n = 0
    while n < 30 and (batch := stream.take(1)) is not None:
        ids = batch.input_ids[0]
        if not batch.attention_mask.all() or (ids[-3:] <= 2).any():
            continue
        n += 1
        whole, cut = (
            traced.capture(part.unsqueeze(0), None, ["model.layers.1"])["model.layers.1"][0, -1].float()
            for part in (ids, torch.cat([torch.tensor([0]), ids[-3:]]))
        )
        f, g = made.encode(whole.unsqueeze(0)) != 0, made.encode(cut.unsqueeze(0)) != 0
        kept, active = kept + int((f & g).sum()), active + int(f.sum())
    assert report.n_tokens == n
    assert by_name(report)["d", 3]["kept"] == pytest.approx(kept / active)


def test_a_dictionary_may_have_the_name_of_a_random_one():
    made = AutoEncoderTopK(tiny.DIM, 24, 4)
    candidates = [Candidate("d", made, SITE), Candidate("random like d", made, SITE)]
    report = context_sensitivity(model(), candidates, TEXT, CONFIG)
    names = [one.name for one in report.scores if one.k == 1 and one.role in ("random", "dictionary")]
    assert len(names) == len(set(names)) == 4


def test_wrong_windows_and_short_text_are_refused():
    with pytest.raises(ConfigError, match="windows"):
        ContextConfig(windows=(64,), ctx_len=64)
    with pytest.raises(DataError, match="at least 2"):
        context_sensitivity(model(), Candidate("d", AutoEncoderTopK(tiny.DIM, 24, 4), SITE), ["w1 w2"], CONFIG)
