"""Ids in every form, names of TransformerLens, and what a model's own settings say of generation."""

import copy

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from dictionary_learning import AutoEncoderTopK, load_model
from dictionary_learning.attribution import Placed, attribute, attribution_graph, logit_difference
from dictionary_learning.dictionaries import DictionaryInfo, Transcoder
from dictionary_learning.errors import ConfigError, DataError, DictionaryLearningError, SiteError
from dictionary_learning.interventions import (
    ablate,
    attached,
    edit_latents,
    generate,
    graft,
    latent_edits,
    read_latents,
    steer,
)
from dictionary_learning.interventions._inputs import as_tokens
from tests import tiny
from tests.attribution.graph_cases import transcoders

pytestmark = pytest.mark.usefixtures("as_for_a_user")
SITE, HOOK = "model.layers.1", "blocks.1.hook_resid_post"
TEXTS = ["w1 w2 w3", "w5"]


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model().eval(), tokenizer=tiny.tokenizer(bos=False))


def sae(*sites: str):
    torch.manual_seed(0)
    dictionary = AutoEncoderTopK(tiny.DIM, 24, k=4)
    dictionary.info = DictionaryInfo(sites=sites)
    return dictionary


# Ids


def forms():
    tokenizer = tiny.tokenizer(bos=False)
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    padded = {
        side: tokenizer(TEXTS, padding=True, return_tensors="pt", padding_side=side) for side in ("left", "right")
    }
    return {
        "lists": rows,
        "tuples": tuple(map(tuple, rows)),
        "tensors": [torch.tensor(row) for row in rows],
        "arrays": [torch.tensor(row).numpy() for row in rows],
        "encoding of lists": tokenizer(TEXTS),
        "encoding": padded["right"],
        "left encoding": padded["left"],
        "dict": dict(padded["right"]),
        "padded lists": tokenizer(TEXTS, padding=True),
        "batch": as_tokens(load_model(tiny.model(), tokenizer=tokenizer), TEXTS),
    }


@pytest.mark.parametrize("form", forms())
@pytest.mark.parametrize("side", ["left", "right"])
def test_ids_are_read_in_every_form(model, form, side):
    ids, mask = as_tokens(model, forms()[form], padding_side=side)
    expected = as_tokens(model, TEXTS, padding_side=side)
    if (form, side) != ("left encoding", "right"):  # which stays as it was given
        assert torch.equal(mask, expected.attention_mask)
    assert [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)] == [[4, 5, 6], [8]]


@pytest.mark.parametrize("one", [[4, 5, 6], (4, 5, 6), [[4, 5, 6]], [torch.tensor(4), 5, 6], torch.tensor([4, 5, 6])])
def test_one_row_is_a_prompt(model, one):
    dictionary, metric = sae(SITE), logit_difference(5, 7)
    expected = torch.tensor([[4, 5, 6]])
    assert torch.equal(as_tokens(model, one).input_ids, expected)
    assert torch.equal(generate(model, one, max_new_tokens=1).input_ids[:, :3], expected)
    assert torch.equal(read_latents(model, dictionary, one).input_ids, expected)
    assert torch.equal(attribute(model, dictionary, one, metric, n_steps=1).tokens.input_ids, expected)
    graph = attribution_graph(model, [each.float() for each in transcoders()], one, max_latents=1)
    assert torch.equal(graph.input_ids, expected[0])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_whole_numbers_of_every_width_are_ids(model, dtype):
    expected, given = torch.tensor([[4, 5, 6]]), np.array([[4, 5, 6]], dtype=dtype)
    for ids in (given, torch.from_numpy(given)):
        assert torch.equal(read_latents(model, sae(SITE), ids).input_ids, expected)
        assert torch.equal(generate(model, ids, max_new_tokens=1).input_ids[:, :3], expected)
    clean = model.capture(expected)
    for inputs in (ids, {"input_ids": ids}):
        assert all(torch.equal(x, clean[site]) for site, x in model.capture(inputs).items())


@pytest.mark.parametrize("form", forms())
def test_generation_continues_rows_of_several_lengths_as_it_would_each(model, form):
    made = generate(model, forms()[form], max_new_tokens=3)
    for row, text in enumerate(TEXTS):
        alone = generate(model, text, max_new_tokens=3)
        assert torch.equal(made.generated[row, : alone.generated.shape[1]], alone.generated[0])


@pytest.mark.parametrize(
    "given",
    [[], [[]], [[4], []], [True], [1.5], [[4.0]], [-1], [["a"]], ["w1", 3], [None], None, 5, {}, {"input_ids": None},
     {"input_ids": [[4, 5]], "attention_mask": [[1]]}, {"input_ids": [[4, 5]], "attention_mask": [[0, 0]]},
     {"input_ids": [[4, 5]], "attention_mask": [[1, 7]]}, {"input_ids": [[4, 5], [6]], "attention_mask": [[1, 1], [0]]},
     [torch.ones(2, 2, dtype=torch.long)], [2**70], b"abc", bytearray(b"abc"), [list(range(5000)), 1.5]],
    ids=lambda given: str(given)[:40],
)  # fmt: skip
def test_what_are_no_ids_is_refused_in_short(model, given):
    with pytest.raises(DataError) as error:
        as_tokens(model, given)
    assert len(str(error.value)) < 300


def test_ids_beyond_the_vocabulary_are_refused(model):
    for use in (lambda ids: generate(model, ids), lambda ids: read_latents(model, sae(SITE), ids)):
        with pytest.raises(DictionaryLearningError, match=str(tiny.VOCAB)):
            use([[4, tiny.VOCAB]])


# Sites by the names of TransformerLens


def test_hooks_of_transformer_lens_are_sites(model):
    dictionary, named, hooked = sae(), sae(SITE), sae(HOOK)
    ids = torch.tensor([[4, 5, 6]])
    expected = read_latents(model, named, ids).dense()
    assert torch.equal(read_latents(model, dictionary, ids, site=HOOK).dense(), expected)
    assert torch.equal(read_latents(model, hooked, ids).dense(), expected)
    edited = model.run(ids, latent_edits(model, named, add={3: 5.0}))
    for edits in (latent_edits(model, dictionary, site=HOOK, add={3: 5.0}), latent_edits(model, hooked, add={3: 5.0})):
        assert torch.equal(model.run(ids, edits), edited)
    zero = model.run(ids, {SITE: ablate()})
    assert torch.equal(model.run(ids, {HOOK: ablate()}), zero)
    with attached(model, {HOOK: ablate()}, special_tokens=True) as module, torch.no_grad():
        assert torch.equal(module(input_ids=ids).logits, zero)
    metric = logit_difference(5, 7)
    effects = [
        attribute(model, one, ids, metric, n_steps=1).effects for one in (named, Placed(dictionary, HOOK), hooked)
    ]
    assert all(torch.equal(each[SITE].effect, effects[0][SITE].effect) for each in effects)


@pytest.mark.parametrize(
    ("hook", "site"),
    [("blocks.0.hook_resid_pre", "model.layers.0:in"), ("blocks.2.hook_mlp_out", "model.layers.2.mlp"),
     ("blocks.2.attn.hook_z", "model.layers.2.self_attn.o_proj:in"), ("blocks.1.mlp.hook_post", "model.layers.1.mlp.down_proj:in")],
)  # fmt: skip
def test_hooks_name_the_sites_that_they_are_at(model, hook, site):
    assert model.sites(hook) == model.sites(site)
    assert torch.equal(*(model.capture(torch.tensor([[4, 5]]), sites=one)[one] for one in (hook, site)))


def test_gemmas_hook_is_behind_its_norm():
    gemma = load_model(tiny.model("gemma3"), tokenizer=tiny.tokenizer())
    (site,) = gemma.sites("blocks.1.hook_mlp_out")
    assert str(site) == "model.layers.1.post_feedforward_layernorm:out"


@pytest.mark.parametrize("hook", ["blocks.1.attn.hook_q", "blocks.9.hook_resid_post", "hook_embed"])
def test_hooks_without_a_module_are_refused_as_such(model, hook):
    with pytest.raises(SiteError, match="hook of TransformerLens"):
        read_latents(model, sae(), "w1", site=hook)


# Edits that do not fit


def test_a_transcoder_is_no_edit_of_one_site(model):
    dictionary = Transcoder(tiny.DIM, 24, {"name": "top_k", "k": 4})
    dictionary.info = DictionaryInfo(sites=("model.layers.1.mlp:in",), target_sites=("model.layers.1.mlp",))
    with pytest.raises(ConfigError, match="latent_edits"):
        edit_latents(dictionary, ablate=[3])
    with pytest.raises(ConfigError, match="graft_across"):
        graft(dictionary)
    dictionary = sae(SITE)
    dictionary.info = DictionaryInfo(sites=(SITE,), target_sites=(f"{SITE}:out",))
    assert graft(dictionary)(torch.ones(1, 2, tiny.DIM)).shape == (1, 2, tiny.DIM)


@pytest.mark.parametrize("shape", [(1,), (5, tiny.DIM), (1, tiny.DIM), (1, 5, tiny.DIM), (7,), ()])
def test_a_direction_is_one_vector(shape):
    with pytest.raises((ConfigError, DataError), match="Got"):
        steer(torch.ones(shape), 1.0)(torch.zeros(1, 5, tiny.DIM))


@pytest.mark.parametrize("shape", [(1,), (5, 1), (5, tiny.DIM), (2, 1, tiny.DIM)])
def test_values_are_not_broadcast_along_tokens(shape):
    with pytest.raises(DataError, match="give one for each of the"):
        ablate(torch.ones(shape))(torch.zeros(2, 5, tiny.DIM))


@pytest.mark.parametrize(
    "build",
    [lambda: steer(torch.ones(tiny.DIM).bool(), 1.0), lambda: steer(torch.ones(tiny.DIM), 10**400),
     lambda: ablate(10**400), lambda: steer(torch.ones(tiny.DIM), 10**5000),
     lambda: edit_latents(sae(SITE), add={3: 10**400}), lambda: edit_latents(sae(SITE), ablate=[10**400])],
)  # fmt: skip
def test_numbers_that_no_tensor_holds_are_refused(build):
    with pytest.raises(ConfigError, match="Got"):
        build()


# Settings of generation


def generating(**settings):
    module = copy.deepcopy(tiny.model()).eval()
    for name, value in settings.items():
        setattr(module.generation_config, name, value)
    return load_model(module, tokenizer=tiny.tokenizer(bos=False))


@pytest.mark.parametrize("settings", [
    {"return_dict_in_generate": True}, {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    {"output_hidden_states": True, "output_attentions": True}, {"max_length": 5}, {"use_cache": False},
    {"cache_implementation": "static"}, {"num_beams": 1, "num_return_sequences": 1},
])  # fmt: skip
def test_a_models_own_settings_do_not_change_what_is_returned(settings):
    expected = generate(generating(), TEXTS, max_new_tokens=6)
    made = generate(generating(**settings), TEXTS, max_new_tokens=6)
    assert torch.equal(made.input_ids, expected.input_ids) and made.texts == expected.texts


def test_the_end_is_what_holds_in_the_end():
    """As an option, in a config among the options, or in the model's own; as a number, a list or a tensor."""
    free = generate(generating(eos_token_id=None), TEXTS, max_new_tokens=6)
    end = int(free.generated[0, 2])
    first = free.generated[0].tolist().index(end)
    for settings, options in (
        ({"eos_token_id": end}, {}), ({"eos_token_id": [end, 90]}, {}), ({}, {"eos_token_id": torch.tensor([end, 90])}),
        ({}, {"eos_token_id": [90, end]}), ({}, {"generation_config": GenerationConfig(eos_token_id=end, pad_token_id=2)}),
    ):  # fmt: skip
        made = generate(generating(**settings), TEXTS, max_new_tokens=6, **options)
        assert int(made.mask[0, made.n_prompt :].sum()) == first + 1, (settings, options)
    with pytest.raises(ConfigError, match="eos_token_id"):
        generate(generating(), TEXTS, eos_token_id="w1")


def test_stop_strings_get_a_tokenizer_and_leave_padding_out(monkeypatch):
    """transformers knows no stop strings for the tiny tokenizer, so its `generate` is not run."""
    model = generating(eos_token_id=None, stop_strings=["w9"])
    seen = []

    def made(ids, **options):
        seen.append(options)
        return torch.cat([ids, torch.tensor([[5, 6, 7], [12, 2, 2]])], 1)

    monkeypatch.setattr(model._original, "generate", made)
    found = generate(model, TEXTS)
    assert seen[0]["tokenizer"] is model.tokenizer
    assert found.mask[:, found.n_prompt :].tolist() == [[True] * 3, [True, False, False]]
    assert found.texts == ["w2 w3 w4", "w9"]


@pytest.mark.parametrize("options", [{"output_scores": True}, {"max_length": 5}, {"return_dict_in_generate": True}])
def test_options_without_an_effect_are_refused(options):
    with pytest.raises(ConfigError, match="Got"):
        generate(generating(), TEXTS, **options)
