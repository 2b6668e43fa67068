"""`attached` edits the tokens that it says, whichever part of a model is called, how, and after what."""

import pytest
import torch

from dictionary_learning import load_model
from dictionary_learning.errors import SiteError
from dictionary_learning.interventions import attached, generate, steer
from tests import tiny
from tests.interventions.test_latents import by_hand, generated

SITE = tiny.LAYER["llama"]
IDS = torch.tensor([[0, 4, 5, 6, 7], [2, 2, 9, 12, 1]])
REAL = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
OTHER = torch.tensor([[3, 8, 1, 2, 2], [11, 12, 13, 14, 2]])
OTHER_REAL = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
ONE = steer(torch.ones(tiny.DIM), 1.0)
SEQ2SEQ = {"t5": ("encoder.block.1", "decoder.block.1"), "bart": ("model.encoder.layers.1", "model.decoder.layers.1")}


@pytest.fixture
def module():
    return tiny.model().eval()


def ordinary(ids, real=None, special=(0, 1, 2)):
    found = ~torch.isin(ids, torch.tensor(special))
    return found if real is None else found & real.bool()


def changed(module, site, call, **options):
    """Returns, for each time that a module is run, which of its outputs an edit changes."""
    found, target = [], module.get_submodule(site)

    def note(kind):
        def hook(_, __, output):
            x = output[0] if isinstance(output, tuple) else output
            found.append((kind, x.detach().clone()))

        return hook

    with torch.no_grad(), attached(load_model(module, tokenizer=tiny.tokenizer()), {site: ONE}, **options):
        handles = [
            target.register_forward_hook(note("before"), prepend=True),
            target.register_forward_hook(note("after")),
        ]
        call(module)
    for handle in handles:
        handle.remove()
    values = [x for _, x in found]
    assert [kind for kind, _ in found] == ["before", "after"] * (len(found) // 2)
    return [(new != old).all(-1) for old, new in zip(values[::2], values[1::2], strict=True)]


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_encoder_and_decoder_are_masked_by_their_own_tokens(family):
    module = tiny.model(family).eval()
    special = (0, 1, 2)
    given = {
        "input_ids": IDS, "attention_mask": REAL, "decoder_input_ids": OTHER, "decoder_attention_mask": OTHER_REAL,
    }  # fmt: skip
    encoder, decoder = SEQ2SEQ[family]
    for site, ids, real in ((encoder, IDS, REAL), (decoder, OTHER, OTHER_REAL)):
        (got,) = changed(module, site, lambda m: m(**given))
        assert torch.equal(got, ordinary(ids, real, special)), site
    x = module.get_input_embeddings()(OTHER).detach()
    embedded = {"input_ids": IDS, "attention_mask": REAL, "decoder_inputs_embeds": x}
    (got,) = changed(module, decoder, lambda m: m(**embedded))
    assert got.all()  # which tokens these are nobody knows


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_generation_of_a_decoder_tells_its_prompt(family):
    module = tiny.model(family).eval()
    encoder, decoder = SEQ2SEQ[family]
    for use_cache in (True, False):

        def call(m, use_cache=use_cache):
            options = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4, "use_cache": use_cache}
            return m.generate(
                IDS, attention_mask=REAL, decoder_input_ids=torch.tensor([[2, 5, 6]] * 2), decoder_start_token_id=2,
                pad_token_id=2, eos_token_id=1, **options,
            )  # fmt: skip

        for when in ("prompt", "generated"):
            (got,) = changed(module, encoder, call, when=when) or [torch.zeros(2, 5, dtype=torch.bool)]
            assert torch.equal(got, ordinary(IDS, REAL) & (when == "prompt"))
            first, *later = changed(module, decoder, call, when=when, special_tokens=True)
            assert first.all() if when == "prompt" else not first.any()
            for n, each in enumerate(later, 1):
                place = torch.arange(3, 3 + n)[-each.shape[1] :] if use_cache else torch.arange(3 + n)
                assert torch.equal(each, ((place < 3) == (when == "prompt")).expand_as(each))


@pytest.mark.parametrize("call", ["plain", "cut", "continued", "new ids", "embedded"])
@pytest.mark.parametrize("when", ["prompt", "generated"])
def test_prompt_is_what_generate_was_given(module, when, call):
    """In one piece, in pieces, after a cache, as new ids after a cache, and as embeddings."""
    prompt = torch.tensor([[4, 5, 6, 7, 8]])
    wanted = {"edits_prompt": when == "prompt", "edits_new": when == "generated"}
    expected = by_hand(module, prompt, ONE, **wanted)
    mask = torch.ones_like(prompt)
    with attached(load_model(module, tokenizer=tiny.tokenizer()), {SITE: ONE}, when=when):
        if call in ("plain", "cut"):
            options = {"prefill_chunk_size": 2} if call == "cut" else {}
            got = generated(module, prompt, **options)
        elif call == "embedded":
            x = module.get_input_embeddings()(prompt).detach()
            got = module.generate(
                inputs_embeds=x,
                attention_mask=mask,
                max_new_tokens=6,
                min_new_tokens=6,
                do_sample=False,
                pad_token_id=2,
            )
        else:
            with torch.no_grad():
                cache = module(prompt[:, :3]).cache
            ids = prompt if call == "continued" else prompt[:, 3:]
            got = generated(module, ids, mask, cache=cache)
    assert torch.equal(got, expected)
    assert "generate" not in vars(module)


def test_own_generation_may_read_its_prompt_in_pieces_or_after_a_cache(module):
    model, prompt = load_model(module, tokenizer=tiny.tokenizer()), torch.tensor([[4, 5, 6, 7, 8]])
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    for when in ("always", "prompt", "generated"):
        expected = generate(model, prompt, {SITE: ONE}, when=when, use_cache=False, **options).input_ids
        cut = generate(model, prompt, {SITE: ONE}, when=when, prefill_chunk_size=2, **options).input_ids
        with torch.no_grad(), attached(model, {SITE: ONE}, when=when):
            cache = module(prompt[:, :3]).cache
        after = generate(model, prompt, {SITE: ONE}, when=when, cache=cache, **options).input_ids
        assert torch.equal(cut, expected) and torch.equal(after, expected), when


def test_in_a_loop_of_ones_own_what_follows_a_cache_is_generated(module):
    def loop(m):
        cache = m(IDS).cache
        m(IDS[:, -2:] * 0 + 5, cache=cache)
        m(IDS[:, -2:] * 0 + 5)

    assert [bool(each.any()) for each in changed(module, SITE, loop, when="prompt")] == [True, False, True]
    assert [bool(each.any()) for each in changed(module, SITE, loop, when="generated")] == [False, True, False]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("when", ["always", "prompt", "generated"])
def test_models_whose_cache_has_no_length(when):
    module = tiny.model("mamba").eval()
    model = load_model(module, tokenizer=tiny.tokenizer())
    site, prompt = str(model.layers()[1]), torch.tensor([[4, 5, 6, 7]])
    expected = generate(model, prompt, {site: ONE}, when=when, use_cache=False, max_new_tokens=5, min_new_tokens=5,
                        do_sample=False).generated  # fmt: skip
    with attached(model, {site: ONE}, when=when):
        assert torch.equal(generated(module, prompt, n=5), expected)
        assert torch.equal(generated(module, prompt, n=5), expected)  # also a second time


@pytest.mark.parametrize("history", [False, True])
def test_parts_of_a_model_are_edited_alike_before_and_after_other_calls(module, history):
    def call(m):
        if history:
            m(OTHER, attention_mask=OTHER_REAL)
        m.model(input_ids=IDS, attention_mask=REAL)
        m.model.layers[1](torch.ones(2, 5, tiny.DIM), position_embeddings=(torch.ones(1, 5, 8), torch.zeros(1, 5, 8)))

    *_, base, layer = changed(module, SITE, call)
    assert torch.equal(base, ordinary(IDS, REAL))
    assert layer.all()  # of a layer alone no tokens are known


def test_tokens_of_a_call_are_forgotten_after_an_error(module):
    def call(m):
        m(IDS, attention_mask=REAL)
        with pytest.raises(Exception, match="size|shape"):
            m(IDS, position_ids=torch.zeros(2, 3, dtype=torch.long))
        m.model.layers[1](torch.ones(2, 5, tiny.DIM), position_embeddings=(torch.ones(1, 5, 8), torch.zeros(1, 5, 8)))

    assert changed(module, SITE, call)[-1].all()


def test_embeddings_in_place_of_ids_leave_padding_as_it_is(module):
    x = module.get_input_embeddings()(IDS).detach()
    for call in (
        lambda m: m(inputs_embeds=x, attention_mask=REAL),
        lambda m: m.model(inputs_embeds=x, attention_mask=REAL),
    ):
        (got,) = changed(module, SITE, call)
        assert torch.equal(got, REAL.bool())


class Outer(torch.nn.Module):
    """A model that embeds its ids itself, as models of images and text do."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, input_ids, attention_mask=None):
        x = self.inner.get_input_embeddings()(input_ids)
        return self.inner(inputs_embeds=x, attention_mask=attention_mask)


def test_a_model_around_that_embeds_the_ids_knows_them(module):
    (got,) = changed(Outer(module), f"inner.{SITE}", lambda m: m(IDS, attention_mask=REAL))
    assert torch.equal(got, ordinary(IDS, REAL))


def test_layers_that_run_again_for_gradients_are_edited_alike(module):
    module.train()
    embedding, gradients = module.get_input_embeddings(), []
    for is_saving in (False, True):
        if is_saving:
            module.activation_checkpointing_enable()
        with attached(load_model(module, tokenizer=tiny.tokenizer()), {SITE: steer(torch.ones(tiny.DIM), 9.0)}):
            module.zero_grad()
            module(IDS, attention_mask=REAL, use_cache=False).logits.logsumexp(-1).sum().backward()
            gradients.append(embedding.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_the_last_tokens_alone_may_have_logits(module):
    site = "model.norm"

    def call(m):
        generated(m, torch.tensor([[4, 5, 6]]), n=3, use_cache=False)

    first, *later = changed(module, site, call, when="prompt")
    assert first.all() and [each.sum().item() for each in later] == [3, 3]
    hidden = []
    head = module.lm_head.register_forward_pre_hook(lambda _, args: hidden.append(args[0].shape[1]))
    with attached(load_model(module, tokenizer=tiny.tokenizer()), {"lm_head:in": ONE}, when="generated"):
        new = generated(module, torch.tensor([[4, 5, 6]]), n=3, use_cache=False)
    head.remove()
    with attached(load_model(module, tokenizer=tiny.tokenizer()), {"lm_head:in": ONE}, when="generated"):
        cached = generated(module, torch.tensor([[4, 5, 6]]), n=3)
    assert hidden[-3:] == [1, 1, 1] and torch.equal(new, cached)


class Halved(torch.nn.Module):
    """A model with one position for two tokens."""

    def __init__(self):
        super().__init__()
        self.embedding, self.middle = torch.nn.Embedding(97, tiny.DIM), torch.nn.Identity()

    def forward(self, input_ids):
        return self.middle(self.embedding(input_ids)[:, ::2])

    def generate(self, input_ids):
        return self(torch.cat([input_ids, input_ids], 1))


def test_positions_that_are_no_tokens_are_refused_where_they_would_be_told_apart():
    module = Halved()
    with attached(module, {"middle": ONE}, when="generated"), pytest.raises(SiteError, match="one for each"):
        module.generate(torch.tensor([[3, 4]]))
    with attached(module, {"middle": ONE}):
        module.generate(torch.tensor([[3, 4]]))
