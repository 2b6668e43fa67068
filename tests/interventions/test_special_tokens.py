"""No dictionary is trained on BOS: however a model is edited, special tokens stay, unless they are asked for."""

import types

import pytest
import torch

from dictionary_learning import load_model
from dictionary_learning.capture._ordinary import real_of, special_ids
from dictionary_learning.dictionaries import AutoEncoderTopK, DictionaryInfo, Transcoder
from dictionary_learning.errors import ConfigError
from dictionary_learning.interventions import (
    ablate,
    attached,
    combine,
    edit_latents,
    edit_latents_across,
    generate,
    graft,
    graft_across,
    latent_edits,
    latent_edits_for,
    put,
    read_latents,
    steer,
)
from tests import tiny
from tests.contracts.dictionary_cases import moved

READ, SITE, NEXT = "model.layers.0", "model.layers.1", "model.layers.2"
IDS = torch.tensor([[0, 5, 9, 1, 12, 40], [2, 2, 0, 8, 33, 7]])  # BOS 0, EOS 1, padding 2
REAL = IDS != 2
SPECIAL = IDS < 3


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model().eval(), tokenizer=tiny.tokenizer())


@pytest.fixture(scope="module")
def dictionary():
    torch.manual_seed(0)
    made = moved(AutoEncoderTopK(tiny.DIM, 60, 6))
    made.info = DictionaryInfo(sites=(SITE,))
    return made


def across(model):
    torch.manual_seed(0)
    read, write = model.sites([READ, SITE])
    return moved(Transcoder(tiny.DIM, 60, {"name": "top_k", "k": 6})), read, write


CHANGE = {"ablate": [0, 1], "add": {3: 40.0}}
EDITS = {
    "latent_edits": lambda model, dictionary: latent_edits(model, dictionary, **CHANGE),
    "latent_edits without the error": lambda model, dictionary: latent_edits(model, dictionary, keep_error=False),
    "edit_latents": lambda _, dictionary: {SITE: edit_latents(dictionary, **CHANGE)},
    "edit_latents_across": lambda model, _: edit_latents_across(*across(model), **CHANGE),
    "steer": lambda *_: {SITE: steer(torch.ones(tiny.DIM), 3.0)},
    "ablate": lambda *_: {SITE: ablate()},
    "graft": lambda _, dictionary: {SITE: graft(dictionary)},
    "graft_across": lambda model, _: graft_across(*across(model)),
    "put": lambda *_: {SITE: put(torch.ones(*IDS.shape, tiny.DIM))},
    "several": lambda model, dictionary: combine(latent_edits(model, dictionary, **CHANGE), {SITE: ablate(1.0)}),
    "a function": lambda *_: {SITE: lambda x: x + 1},
    "in place": lambda *_: {SITE: lambda x: x.add_(1)},
}


def seen_at_next(model, call):
    """Returns what the layer after the site reads of the text: edited already."""
    seen = []
    layer = model._original.get_submodule(NEXT)
    handle = layer.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0].clone()), with_kwargs=True)
    with torch.no_grad():
        call()
    handle.remove()
    return next(x for x in seen if x.shape[:2] == IDS.shape)  # what probes the model is shorter


def run(model, edits, **options):
    seen = []
    site, *_ = model.sites(f"{NEXT}:in")
    with torch.no_grad():
        logits = model.run(IDS, REAL, {**edits, site: lambda x: seen.append(x.clone())}, **options)
    assert logits.isfinite().all()
    return seen[0]


def within_attached(model, edits, **options):
    with attached(model, edits, **options) as module:
        return seen_at_next(model, lambda: module(input_ids=IDS, attention_mask=REAL.long()))


def while_generating(model, edits, **options):
    batch = {"input_ids": IDS, "attention_mask": REAL}
    return seen_at_next(model, lambda: generate(model, batch, edits, max_new_tokens=1, **options))


WAYS = {"run": run, "attached": within_attached, "generate": while_generating}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", EDITS)
def test_special_tokens_stay_however_a_model_is_edited(model, dictionary, kind, way):
    clean = model.capture(IDS, REAL, [SITE])[SITE]
    for options, changed in (({}, ~SPECIAL), ({"special_tokens": True}, REAL)):
        got = WAYS[way](model, EDITS[kind](model, dictionary), **options)
        assert torch.equal(got[~changed & REAL], clean[~changed & REAL])
        assert (got != clean).any(-1)[changed].all()


@pytest.mark.parametrize("onto", ["clean", "running"])
def test_edits_that_were_made_for_special_tokens_too_change_them_when_they_are_run(model, dictionary, onto):
    clean = model.capture(IDS, REAL, [SITE])[SITE]
    for special, changed in ((False, ~SPECIAL), (True, REAL)):
        text = {"input_ids": IDS, "attention_mask": REAL}
        made = latent_edits_for(model, dictionary, text, onto=onto, special_tokens=special, add={3: 40.0})
        got = run(model, made.edits)
        assert torch.equal(got[~changed & REAL], clean[~changed & REAL])
        assert (got != clean).any(-1)[changed].all()
        if special:
            with pytest.raises(ConfigError, match="all or none"):
                combine(made.edits, {SITE: ablate()})


def test_a_mask_chooses_among_the_tokens_that_are_not_special(model, dictionary):
    keep = torch.zeros_like(IDS, dtype=torch.bool)
    keep[:, :2] = True
    clean = model.capture(IDS, REAL, [SITE])[SITE]
    got = run(model, latent_edits(model, dictionary, add={3: 40.0}, keep=keep))
    assert torch.equal((got != clean).any(-1), keep & ~SPECIAL)


def test_a_latent_that_reading_calls_inactive_has_no_effect(model, dictionary):
    reading = read_latents(model, dictionary, "w1 w2 w3")
    clean = model.run(reading.input_ids, reading.attention_mask)
    inactive = (reading.dense().amax((0, 1)) == 0).nonzero().flatten().tolist()
    got = model.run(reading.input_ids, reading.attention_mask, latent_edits(model, dictionary, ablate=inactive))
    assert torch.equal(got, clean)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_and_decoder_each_have_their_own_special_tokens(family):
    model = load_model(tiny.model(family).eval())
    ids = torch.tensor([[5, 9, 1, 12]])
    encoder, decoder = (f"{part}.{'block' if family == 't5' else 'layers'}.1" for part in ("encoder", "decoder"))
    prefix = "" if family == "t5" else "model."
    for site, special in ((encoder, ids == 1), (decoder, torch.tensor([[True, False, False, True]]))):
        path, seen = f"{prefix}{site}", []
        after = f"{path.removesuffix('1')}2:in"
        clean = model.capture(ids, None, [path])[path]
        with torch.no_grad():
            model.run(ids, {path: ablate(7.0), after: lambda x, seen=seen: seen.append(x.clone())})
        assert torch.equal((seen[0] == clean).all(-1), special)


@pytest.mark.parametrize("way", WAYS)
def test_every_token_that_ends_a_text_stays(way, model, dictionary, monkeypatch):
    """Chat models have several, of which a tokenizer knows one."""
    monkeypatch.setattr(model._original.generation_config, "eos_token_id", [1, 9, 33])
    whole, changed = WAYS[way](model, {}), WAYS[way](model, {SITE: ablate(1.0)})
    stays = SPECIAL | (IDS == 9) | (IDS == 33)
    assert torch.equal((changed == whole).all(-1)[REAL], stays[REAL])


@pytest.mark.parametrize(
    ("tokenizer", "config", "expected"),
    [
        ({"cls_token_id": 101, "sep_token_id": 102, "pad_token_id": 0}, {}, {0, 101, 102}),
        (None, {"bos_token_id": 4, "eos_token_id": [5, 6], "pad_token_id": None}, {4, 5, 6}),
        (None, {}, set()),
    ],
)
def test_special_ids_are_those_of_every_kind_of_model(tokenizer, config, expected):
    module = types.SimpleNamespace(config=types.SimpleNamespace(**config))
    made = types.SimpleNamespace(module=module, tokenizer=tokenizer and types.SimpleNamespace(**tokenizer))
    assert set(special_ids(made)) == expected


@pytest.mark.parametrize("opens", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["bool", "added"])
@pytest.mark.parametrize("way", ["run", "attached"])
def test_padding_is_known_from_a_mask_of_who_reads_whom(way, kind, side, opens, model):
    ids = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])  # none is special
    ids = ids.repeat(2, 1)[:3]
    real = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]).bool()
    real = real if side == "left" else real.flip(1)
    reads = torch.ones(5, 5).tril().bool() & real[:, None, None, :]
    if opens:  # as transformers mends a row that reads nothing
        reads |= ~reads.any(-1, keepdim=True)
    mask = reads if kind == "bool" else torch.zeros(reads.shape).masked_fill(~reads, torch.finfo(torch.float32).min)
    seen = []
    after = model._original.get_submodule(NEXT).register_forward_pre_hook(lambda _, x: seen.append(x[0].clone()))
    try:
        for edits in ({}, {SITE: ablate(7.0)}):
            with attached(model, edits if way == "attached" else {}) as module, torch.no_grad():
                if way == "attached":
                    module(input_ids=ids, attention_mask=mask)
                else:
                    model.run({"input_ids": ids, "attention_mask": mask}, edits=edits)
    finally:
        after.remove()
    first, last = (x for x in seen if x.shape[:2] == ids.shape)
    assert torch.equal((first == last).all(-1), ~real)


def test_a_single_token_that_reads_itself_is_none_of_padding(model):
    ids, mask = torch.tensor([[5]]), torch.zeros(1, 1, 1, 1)
    with torch.no_grad():
        clean = model._original(input_ids=ids, attention_mask=mask).logits
        with attached(model, {SITE: ablate(7.0)}) as module:
            assert not torch.equal(module(input_ids=ids, attention_mask=mask).logits, clean)


@pytest.mark.parametrize("how", ["a token alone", "both ways", "both ways, padded", "by kind of layer", "documents"])
def test_real_tokens_are_known_from_a_mask_of_who_reads_whom(how):
    causal, both = torch.ones(1, 1, 4, 4).tril().bool(), torch.ones(1, 1, 4, 4).bool()
    last = torch.tensor([True, True, True, False])
    masks = {
        "a token alone": (torch.ones(1, 1, 1, 1).bool(), [True]),
        "both ways": (both, [True] * 4),
        "both ways, padded": (both & last, last.tolist()),
        "by kind of layer": ({"full_attention": causal & last, "sliding_attention": causal & last}, last.tolist()),
        "documents": (causal & torch.block_diag(torch.ones(3, 3), torch.ones(1, 1)).bool(), [True] * 4),
    }
    mask, expected = masks[how]
    assert real_of(mask, 1, len(expected)).tolist() == [expected]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("when", ["always", "prompt", "generated"])
def test_generation_is_edited_alike_with_every_cache(model, dictionary, cache, when):
    """A static cache is as wide as it may become, and so is its mask."""
    edits = {SITE: steer(torch.randn(tiny.DIM, generator=torch.Generator().manual_seed(0)), 30.0)}
    text = {"input_ids": IDS[:, [2, 1, 4, 5]], "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])}
    options = {"max_new_tokens": 6, "do_sample": False, "when": when}
    expected = generate(model, text, edits, **options).input_ids
    assert torch.equal(generate(model, text, edits, **options, cache_implementation=cache).input_ids, expected)
    assert not torch.equal(generate(model, text, {}, max_new_tokens=6, do_sample=False).input_ids, expected)
