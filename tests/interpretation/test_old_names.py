"""The functions of dictionary-learning's `interp`, compared with what they promise, by plain hooks."""

import importlib.util
import sys
import types

import numpy as np
import pytest
import torch

from dictionary_learning import ActivationBuffer, load_model
from dictionary_learning.dictionaries import AutoEncoderTopK
from dictionary_learning.errors import ConfigError, DataError, DictionaryLearningError, MissingDependencyError
from dictionary_learning.interp import examine_dimension, feature_effect, feature_umap
from tests import tiny

SITE = "model.layers.1"


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model(), tokenizer=tiny.tokenizer())


@pytest.fixture(scope="module")
def dictionary():
    torch.manual_seed(0)
    return AutoEncoderTopK(tiny.DIM, 32, k=6)


def next_token(model, ids, change):
    """Returns the log-probabilities of the token after a text, with a change of the activations."""
    handle = model._original.get_submodule(SITE).register_forward_hook(
        lambda _, args, output: change(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        logits = model._original(input_ids=torch.tensor([ids])).logits
    handle.remove()
    return logits[0, -1].log_softmax(-1)


@pytest.mark.parametrize("kind", ["error kept", "reconstructed", "dimension"])
def test_feature_effect_is_the_fall_at_the_last_token(model, dictionary, kind):
    texts = [[0, 4, 9, 20, 7], [0, 30, 12], [0, 50, 51, 52, 53, 54, 55]]
    latents = [dictionary.encode(model.capture(torch.tensor([t]), None, [SITE])[model.sites(SITE)[0]]) for t in texts]
    feature = int(torch.cat(latents, 1)[0].sum(0).argmax())

    def without(x):
        f = dictionary.encode(x)
        return f.index_fill(-1, torch.tensor([feature]), 0.0)

    changes = {
        "error kept": (lambda x: x, lambda x: x - dictionary(x) + dictionary.decode(without(x))),
        "reconstructed": (dictionary, lambda x: dictionary.decode(without(x))),
        "dimension": (lambda x: x, lambda x: x.index_fill(-1, torch.tensor([5]), 0.0)),
    }[kind]
    with torch.no_grad():
        falls = torch.stack([next_token(model, t, changes[0]) - next_token(model, t, changes[1]) for t in texts]).mean(
            0
        )
    given = (None, 5) if kind == "dimension" else (dictionary, feature)
    for largest in (True, False):
        tokens, found = feature_effect(
            model, SITE, *given, texts, add_residual=kind != "reconstructed", k=6, largest=largest
        )
        torch.testing.assert_close(found, falls.topk(6, largest=largest).values, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(falls[tokens], found, atol=1e-4, rtol=1e-3)


def test_feature_effect_takes_texts_and_cuts_them(model, dictionary):
    text = tiny.documents(1)[0]
    ids = [0, *model.tokenizer(text)["input_ids"]][:4]  # BOS is added, as in training
    by_text = feature_effect(model, SITE, dictionary, [1, 2], text, max_length=4, k=3)
    by_ids = feature_effect(model, SITE, dictionary, [1, 2], [ids], k=3)
    assert torch.equal(by_text[0], by_ids[0]) and torch.equal(by_text[1], by_ids[1])


@pytest.mark.parametrize("with_dictionary", [True, False])
def test_examine_dimension_finds_tokens_and_contexts(model, dictionary, with_dictionary):
    texts = tiny.documents(30)
    buffer, again = (ActivationBuffer(texts, model, SITE, n_ctxs=8, ctx_len=16, refresh_batch_size=4, out_batch_size=8)
                     for _ in range(2))  # fmt: skip
    used = dictionary if with_dictionary else None
    found = examine_dimension(model, model._original.get_submodule(SITE), buffer, used, n_inputs=12, dim_idx=3, k=5)
    tokens = again.tokenized_batch(12)
    x = model.capture(*tokens, [SITE])[model.sites(SITE)[0]]
    values = (dictionary.encode(x) if with_dictionary else x)[..., 3].detach()
    means = {}
    for token in tokens.input_ids[tokens.attention_mask].unique().tolist():
        means[token] = float(values[(tokens.input_ids == token) & tokens.attention_mask].mean())
    best = sorted(means.values(), reverse=True)[:5]
    assert [mean for _, mean in found.top_tokens] == pytest.approx(best, abs=1e-4)
    assert all(means[model.tokenizer.convert_tokens_to_ids(word)] == pytest.approx(mean, abs=1e-4)
               for word, mean in found.top_tokens)  # fmt: skip
    peaks = [float(one[-1]) for one in found.top_contexts.activations]
    assert peaks == pytest.approx(values[tokens.attention_mask].topk(5).values.tolist(), abs=1e-4)
    assert all(len(w) == len(a) for w, a in zip(*found.top_contexts, strict=True))
    assert len(found.top_affected) == 5 and all(
        isinstance(w, str) and isinstance(p, float) for w, p in found.top_affected
    )
    assert type(found).__name__ == "featureProfile"


def test_examine_dimension_draws_a_feature_and_escapes_text(model, dictionary):
    from dictionary_learning.compat._interp import TopContexts

    buffer = ActivationBuffer(
        tiny.documents(30), model, SITE, n_ctxs=8, ctx_len=16, refresh_batch_size=4, out_batch_size=8
    )
    assert examine_dimension(model, SITE, buffer, dictionary, n_inputs=4, k=2).top_contexts._repr_html_()
    shown = TopContexts([["<img src=x onerror=alert(1)>"]], [torch.tensor([1.0])])._repr_html_()
    assert "<img" not in shown and "&lt;img" in shown


def test_wrong_requests_are_refused(model, dictionary):
    buffer = ActivationBuffer(
        tiny.documents(30), model, SITE, n_ctxs=8, ctx_len=16, refresh_batch_size=4, out_batch_size=8
    )
    wrong = [
        lambda: feature_effect(model, SITE, dictionary, 99, "w1 w2"),
        lambda: feature_effect(model, SITE, dictionary, 1, "w1 w2", k=98),
        lambda: feature_effect(model, SITE, dictionary, 1, []),
        lambda: feature_effect(model, SITE, dictionary, 1, [[]]),
        lambda: feature_effect(model, "model.layers.*", dictionary, 1, "w1"),
        lambda: examine_dimension(model, SITE, buffer, dictionary, dim_idx=32),
        lambda: feature_umap(dictionary, n_components=4),
        lambda: feature_umap(dictionary, weight="middle"),
    ]
    for call in wrong:
        with pytest.raises(DictionaryLearningError, match=r"[.;:,] "):
            call()
    with pytest.raises(DataError, match="ActivationBuffer"):
        examine_dimension(model, SITE, [1, 2], dictionary)
    with pytest.raises(ConfigError):
        examine_dimension(model, SITE, buffer, dictionary, k=0)


def test_feature_umap_passes_directions_on_and_colors_features(dictionary, monkeypatch):
    """Both packages are stood in for: the real ones take a minute to be compiled."""
    seen, shown = {}, {}

    class UMAP:
        def __init__(self, **options):
            seen.update(options)

        def fit_transform(self, rows):
            seen["rows"] = rows
            return np.arange(rows.shape[0] * seen["n_components"], dtype=float).reshape(rows.shape[0], -1)

    def module(name, **entries):
        made = types.ModuleType(name)
        made.__spec__ = importlib.util.spec_from_loader(name, None)
        vars(made).update(entries)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    express = module("plotly.express", scatter=lambda **o: shown.update(o) or "flat", scatter_3d=lambda **o: "deep")
    module("umap", UMAP=UMAP)
    module("plotly", express=express)
    assert feature_umap(dictionary, "encoder", n_neighbors=7, feat_idxs=[3, 4]) == "flat"
    assert seen["n_neighbors"] == 7 and seen["metric"] == "cosine" and seen["min_dist"] == 0.05
    np.testing.assert_array_equal(seen["rows"], dictionary.W_enc.detach().numpy())
    assert [n for n, color in zip(shown["hover_name"], shown["color"], strict=True) if color == "chosen"] == [3, 4]
    assert feature_umap(dictionary) == "flat" and shown["color"] is None
    assert feature_umap(dictionary, n_components=3, feat_idxs=2) == "deep"


def test_feature_umap_names_what_is_missing(dictionary, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="feature_umap needs .* pip install "):
        feature_umap(dictionary)
