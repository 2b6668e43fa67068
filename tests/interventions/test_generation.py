"""What a model writes while it is edited: that of a loop with plain hooks, in batches, with and without a cache."""

import logging

import pytest
import torch

from dictionary_learning import load_model
from dictionary_learning.dictionaries import AutoEncoderTopK, CrossLayerTranscoder, DictionaryInfo
from dictionary_learning.errors import ConfigError, DataError, ModelError, SiteError
from dictionary_learning.experimental.temporal import TemporalAutoencoder
from dictionary_learning.interventions import attached, edit_latents, generate, latent_edits, steer
from tests import tiny
from tests.interventions.test_latents import by_hand

SITE = tiny.LAYER["llama"]
TEXTS = ["w1 w2 w3", "w7", "<s> w20"]
IDS = [[0, 4, 5, 6], [0, 10], [0, 23]]
GREEDY = {"do_sample": False, "min_new_tokens": 5, "max_new_tokens": 5}


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model().eval(), tokenizer=tiny.tokenizer())


@pytest.fixture(scope="module")
def edit():
    torch.manual_seed(0)
    return edit_latents(AutoEncoderTopK(tiny.DIM, 64, k=6), add={5: 6.0}, ablate=[9])


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("when", ["always", "prompt", "generated"])
def test_generation_is_that_of_a_loop_with_plain_hooks(model, edit, when, use_cache):
    made = generate(model, TEXTS, {SITE: edit}, when=when, use_cache=use_cache, **GREEDY)
    assert made.n_prompt == 4 and made.mask.sum(-1).tolist() == [9, 7, 7]
    for ids, got, words in zip(IDS, made.generated, made.texts, strict=True):
        changes = {"edits_prompt": when != "generated", "edits_new": when != "prompt"}
        expected = by_hand(model._original, torch.tensor([ids]), edit, n=5, **changes)
        assert torch.equal(got.unsqueeze(0), expected)
        assert words == tiny.tokenizer().decode(got.tolist(), skip_special_tokens=True)
    assert not torch.equal(generate(model, TEXTS, **GREEDY).generated, made.generated)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", [*tiny.FAMILIES, "mamba", "opt"])
def test_batch_padding_and_cache_agree_with_one_by_one(family):
    model = load_model(tiny.model(family).eval(), tokenizer=tiny.tokenizer())
    edits = {str(model.layers()[1]): steer(torch.ones(tiny.DIM), 3.0)}
    for when in ("always", "prompt", "generated"):
        together = generate(model, TEXTS, edits, when=when, **GREEDY).generated
        apart = [generate(model, text, edits, when=when, use_cache=False, **GREEDY).generated for text in TEXTS]
        assert torch.equal(together, torch.cat(apart)), when


def test_a_cross_layer_transcoder_is_edited_at_every_token(model):
    torch.manual_seed(0)
    dictionary = CrossLayerTranscoder((16,) * 3, 60, {"name": "top_k", "k": 6})
    sites = tuple(f"model.layers.{n}.mlp" for n in range(3))
    dictionary.info = DictionaryInfo(sites=tuple(f"{site}:in" for site in sites), target_sites=sites)
    edits = latent_edits(model, dictionary, clamp={3: 9.0, 25: -7.0, 50: 8.0})
    ids = torch.tensor([[9, 12, 30]])
    expected = ids
    for _ in range(5):  # the whole text again for each token, and no generation
        logits = model.run(expected, edits)[:, -1].index_fill(-1, torch.tensor([1]), -torch.inf)
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(generate(model, ids, edits, **GREEDY).input_ids, expected)
    assert not torch.equal(generate(model, ids, **GREEDY).input_ids, expected)


def test_sampling_depends_on_the_generator_alone(model, edit):
    state = torch.get_rng_state()
    draws = torch.Generator().manual_seed(3)
    options = {"do_sample": True, "max_new_tokens": 12}
    first, second = (generate(model, TEXTS, {SITE: edit}, generator=draws, **options).texts for _ in range(2))
    again = generate(model, TEXTS, {SITE: edit}, generator=torch.Generator().manual_seed(3), **options).texts
    assert first == again != second
    assert torch.equal(torch.get_rng_state(), state)


def test_beams_are_those_of_the_edited_model(model, edit):
    made = generate(model, TEXTS[:2], {SITE: edit}, num_beams=3, num_return_sequences=2, **GREEDY)
    assert made.input_ids.shape == made.mask.shape == (4, 9)
    assert made.mask[:, :4].tolist() == [[True] * 4] * 2 + [[False, False, True, True]] * 2
    with attached(model, {SITE: edit}) as module:
        ids = torch.tensor(IDS[:1])
        expected = module.generate(ids, num_beams=3, num_return_sequences=2, pad_token_id=2, **GREEDY)
    assert torch.equal(made.input_ids[:2], expected)


def test_what_follows_the_end_is_padding(model):
    (ended,) = generate(model, TEXTS[:1], max_new_tokens=6, do_sample=False, eos_token_id=[88, 1]).mask
    assert ended.all()
    first = int(generate(model, TEXTS[:1], max_new_tokens=1, do_sample=False).generated)
    made = generate(model, TEXTS[:2], max_new_tokens=6, do_sample=False, eos_token_id=first)
    assert made.mask[0].tolist() == [True] * 5 + [False] * (made.mask.shape[1] - 5)
    assert made.generated[0, 0] == first and (made.generated[0, 1:] == 2).all()


def test_an_edit_without_effect_is_warned_of_once(model, edit, caplog):
    never = edit_latents(AutoEncoderTopK(tiny.DIM, 64, k=6), scale={3: 1.0})
    layer = "model.layers.0"
    with caplog.at_level(logging.WARNING):
        generate(model, TEXTS, {SITE: edit, layer: never}, **GREEDY)
    (warning,) = [record.getMessage() for record in caplog.records if "no logit" in record.getMessage()]
    assert layer in warning and SITE not in warning
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        generate(model, TEXTS, {SITE: edit}, **GREEDY)
        generate(model, TEXTS, **GREEDY)
        with attached(model, {layer: never}):
            pass  # the model was not called
    assert not caplog.records
    with caplog.at_level(logging.WARNING):  # special tokens stay as they are
        generate(model, "<s>", {SITE: edit}, when="prompt", **GREEDY)
    assert len(caplog.records) == 1


class Unused(torch.nn.Module):
    """A model one of whose layers nobody listens to."""

    def __init__(self):
        super().__init__()
        self.embedding, self.idle, self.head = torch.nn.Embedding(97, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 97)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        self.idle(x)
        return self.head(x)


def test_a_site_that_nothing_reads_is_warned_of(caplog):
    module = Unused()
    with caplog.at_level(logging.WARNING), attached(module, {"idle": steer(torch.ones(8), 1.0)}):
        module(torch.tensor([[3, 4]]))
    assert ["nothing reads them" in record.getMessage() for record in caplog.records] == [True]


def test_latents_of_contexts_need_the_whole_text(model):
    torch.manual_seed(0)
    dictionary = TemporalAutoencoder(tiny.DIM, 32, 4, n_heads=2, bottleneck_factor=4)
    dictionary.info = DictionaryInfo(sites=(SITE,))
    edits = latent_edits(model, dictionary, ablate=list(range(16)))
    with pytest.raises(ConfigError, match="use_cache=False"):
        generate(model, "w1 w2 w3", edits, **GREEDY)
    made = generate(model, "w1 w2 w3", edits, use_cache=False, **GREEDY)
    assert torch.equal(made.generated, by_hand(model._original, torch.tensor(IDS[:1]), *edits.values(), n=5))


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"when": "later"}, ConfigError, "always"),
        ({"attention_mask": None}, ConfigError, "Leave it out"),
        ({"max_new_tokens": 0}, ConfigError, "max_new_tokens"),
        ({"temperature": -1.0, "do_sample": True}, ConfigError, "temperature"),
        ({"edits": {"model.layers.7": steer(torch.ones(16), 1.0)}}, SiteError, "layers.7"),
        ({"edits": {SITE: 5}}, ConfigError, "mappings from sites"),
        ({"prompts": ""}, DataError, "no token"),
        ({"prompts": []}, DataError, "give a string"),
        ({"prompts": torch.full((2, 3), 0.5)}, DataError, "token ids"),
    ],
    ids=tiny.plain_id,
)
def test_wrong_arguments_are_refused(model, given, error, match):
    with pytest.raises(error, match=match):
        generate(model, **{"prompts": "w1", **given})


def test_models_that_write_no_text_are_refused():
    for family, match in (("bert", "does not generate"), ("t5", "decoder of its own")):
        with pytest.raises(ModelError, match=match):
            generate(load_model(tiny.model(family), tokenizer=tiny.tokenizer()), "w1")


def test_edits_of_several_sites_work_in_nnsight_s_own_generation(model, edit):
    """Values are saved inside the loop: what follows it is not run when generation ends early."""
    import nnsight

    module = model._original
    second = steer(torch.ones(tiny.DIM), 2.0)
    ids = torch.tensor([[9, 12, 30]])
    expected = generate(model, ids, [{SITE: edit}, {"model.layers.2": second}], special_tokens=True, max_new_tokens=6,
                        do_sample=False)  # fmt: skip
    end = int(expected.generated[0, 3])
    first = expected.generated[0].tolist().index(end) + 1
    wrapped = nnsight.TransformersModel(module, tokenizer=tiny.tokenizer())
    widths = []
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, "eos_token_id": end}
    with pytest.warns(UserWarning, match="was never reached"), wrapped.generate(**options) as tracer:
        with tracer.invoke(ids):
            for _ in tracer.iter[:]:
                for number, change in ((1, edit), (2, second)):
                    layer = wrapped.model.layers[number]
                    output = layer.output
                    is_tuple = isinstance(output, tuple)
                    new = change(output[0] if is_tuple else output)
                    layer.output = (new, *output[1:]) if is_tuple else new
                widths.append(int(new.shape[1]))
        with tracer.invoke():
            result = tracer.result.save()
    assert widths == [3, *[1] * (first - 1)]
    assert torch.equal(result[:, 3:], expected.generated[:, :first])
