"""Edits of latents do exactly what is asked, in a forward pass and in generation."""

import math

import pytest
import torch

from dictionary_learning import Site, load_model
from dictionary_learning.dictionaries import AutoEncoderTopK
from dictionary_learning.dictionaries._info import DictionaryInfo
from dictionary_learning.errors import ConfigError, DataError, SiteError
from dictionary_learning.interventions import (
    attached,
    edit_latents,
    edit_latents_across,
    graft,
    graft_across,
    read_latents,
    steer,
)
from dictionary_learning.latents import columns_of, to_dense
from tests import tiny
from tests.contracts.dictionary_cases import ANY, X, build

SITE = tiny.LAYER["llama"]
IDS = torch.arange(3, 27).view(2, 12)
SAME_SITE = [case for case in ANY if build(case).output_dim == 12]
ACROSS = [case for case in ANY if not isinstance(case, str) and case[0].endswith("transcoder") and case[0] != "cross_layer_transcoder"]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model(), tokenizer=tiny.tokenizer())


@pytest.fixture(scope="module")
def dictionary(model):
    torch.manual_seed(0)
    made = AutoEncoderTopK(tiny.DIM, 64, k=6)
    made.info = DictionaryInfo(sites=(SITE,))
    return made


def contexts(dtype=torch.float32) -> torch.Tensor:
    return X.view(2, 12, 12).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", SAME_SITE, ids=str)
def test_changing_nothing_changes_no_bit(case, dtype):
    dictionary, x = build(case), contexts(dtype)
    for options in ({}, {"scale": {3: 1.0, 7: 1.0}}, {"add": {2: 0.0}}):
        assert torch.equal(edit_latents(dictionary, **options)(x), x)
    torch.testing.assert_close(edit_latents(dictionary, keep_error=False)(x), graft(dictionary)(x))


CHANGES = {
    "ablate": lambda f: f.index_fill(1, torch.tensor([1, 30]), 0.0),
    "clamp": lambda f: f.index_fill(1, torch.tensor([4]), 2.5),
    "scale": lambda f: torch.cat([f[:, :9], -3 * f[:, 9:10], f[:, 10:]], 1),
    "add": lambda f: torch.cat([f[:, :11], f[:, 11:12] + 0.75, f[:, 12:]], 1),
}
GIVEN = {"ablate": [1, 30], "clamp": {4: 2.5}, "scale": {9: -3.0}, "add": {11: 0.75}}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("case", [c for c in SAME_SITE if c not in ("IdentityDict", "Normalized")], ids=str)
def test_each_change_is_that_of_the_dense_latents(case, change):
    dictionary, x = build(case).double(), contexts(torch.float64)
    rows = x.view(24, 12)
    f = to_dense(dictionary.reconstruct(rows).latents)
    with torch.no_grad():
        difference = dictionary.decode_with(CHANGES[change](f), rows) - dictionary.decode_with(f, rows)
        with_error = edit_latents(dictionary, **{change: GIVEN[change]})(x).view(24, 12)
        without = edit_latents(dictionary, keep_error=False, **{change: GIVEN[change]})(x).view(24, 12)
    torch.testing.assert_close(with_error, rows + difference)
    torch.testing.assert_close(without, dictionary.reconstruct(rows).outputs + difference)


def test_normalized_dictionaries_change_in_units_of_the_model():
    dictionary, x = build("Normalized"), contexts()
    rows = x.view(24, 12)
    f = to_dense(dictionary.reconstruct(rows).latents)
    with torch.no_grad():
        expected = rows + dictionary.decode(CHANGES["clamp"](f), rows) - dictionary.decode(f, rows)
        got = edit_latents(dictionary, clamp=GIVEN["clamp"])(x).view(24, 12)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ACROSS, ids=str)
def test_transcoders_change_what_they_predict(case):
    dictionary = build(case).double()
    if dictionary.output_dim == dictionary.activation_dim:
        pytest.skip("one matrix for both sides")
    x, y = contexts(torch.float64), torch.randn(2, 12, dictionary.output_dim, dtype=torch.float64)
    read, write = Site("m", "in"), Site("m")

    def through(edits):
        edits[read](x)
        return edits[write](y)

    rows = x.view(24, 12)
    with torch.no_grad():
        f = to_dense(dictionary.reconstruct(rows).latents)
        kept = through(edit_latents_across(dictionary, read, write, ablate=[1, 30]))
        replaced = through(edit_latents_across(dictionary, read, write, keep_error=False))
        assert torch.equal(through(edit_latents_across(dictionary, read, write)), y)
        outputs = dictionary.reconstruct(rows).outputs
        changed = dictionary.decode_latents(CHANGES["ablate"](f), rows)
    torch.testing.assert_close(kept.view(24, -1), y.view(24, -1) + changed - outputs)
    torch.testing.assert_close(replaced, through(graft_across(dictionary, read, write)))


def test_masks_leave_other_tokens_as_they_are(dictionary):
    x = torch.randn(2, 12, tiny.DIM)
    keep = torch.zeros(2, 12, dtype=torch.bool)
    keep[1, 3:5] = True
    new = edit_latents(dictionary, add={3: 2.0}, keep=keep)(x)
    assert torch.equal(new[~keep], x[~keep])
    torch.testing.assert_close(new[keep], x[keep] + 2.0 * dictionary.W_dec[3].detach())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"ablate": [64]}, "latents 0 to 63"),
        ({"ablate": [-1]}, "latents 0 to 63"),
        ({"clamp": {True: 1.0}}, "Got latent True"),
        ({"clamp": {2: math.nan}}, "finite"),
        ({"add": {2: math.inf}}, "finite"),
        ({"ablate": [2], "clamp": {2: 1.0}}, "two ways"),
    ],
    ids=str,
)
def test_bad_changes_are_refused(dictionary, changes, match):
    with pytest.raises(ConfigError, match=match):
        edit_latents(dictionary, **changes)


def test_a_transcoder_is_no_autoencoder():
    with pytest.raises(ConfigError, match="edit_latents_across"):
        edit_latents(build(("transcoder", "top_k")), ablate=[1])


@pytest.mark.parametrize("case", SAME_SITE, ids=str)
def test_columns_are_those_of_the_dense_latents(case):
    latents = build(case).reconstruct(X).latents
    columns = torch.tensor([3, 0, 11, 3])
    assert torch.equal(columns_of(latents, columns), to_dense(latents)[:, columns])
    assert columns_of(latents, columns[:0]).shape == (24, 0)


def test_units_of_a_strength(dictionary):
    x, d = torch.randn(2, 5, tiny.DIM), 3 * torch.randn(tiny.DIM)
    torch.testing.assert_close(steer(d, 2.0)(x), x + 2 * d)
    torch.testing.assert_close(steer(d, 2.0, unit="max_activation", max_activation=5.0)(x), x + 10 * d)
    by_norm = steer(d, 0.5, unit="norm")(x) - x
    torch.testing.assert_close(by_norm.norm(dim=-1), 0.5 * x.norm(dim=-1))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(by_norm, d.expand_as(x), dim=-1), torch.ones(2, 5))
    assert torch.equal(steer(d, 0.0)(x), x)
    for options in ({"unit": "max_activation"}, {"max_activation": 2.0}):
        with pytest.raises(ConfigError, match="unit"):
            steer(d, 1.0, **options)


def test_read_latents_are_those_of_the_captured_activations(model, dictionary):
    texts = ["w1 w2 w3 w4", "w7 w8"]
    reading = read_latents(model, dictionary, texts)
    assert reading.tokens == [["<s>", "w1", "w2", "w3", "w4"], ["<s>", "w7", "w8"]]
    assert reading.mask.tolist() == [[False, *[True] * 4], [False, True, True, False, False]]
    assert reading.row.tolist() == [0, 0, 0, 0, 1, 1] and reading.position.tolist() == [1, 2, 3, 4, 1, 2]
    dense = reading.dense()
    assert dense.shape == (2, 5, 64) and not dense[1, 3:].any()
    for row, text in enumerate(texts):
        alone = read_latents(model, dictionary, text, site=SITE)
        n = alone.mask.shape[1]
        torch.testing.assert_close(dense[row, :n], alone.dense()[0], rtol=1e-4, atol=1e-5)
        ids = torch.tensor([[0, *tiny.tokenizer()(text)["input_ids"]]])
        x = model.capture(ids, None, [Site(SITE)])[Site(SITE)]
        torch.testing.assert_close(alone.dense()[:, 1:], dictionary.encode(x)[:, 1:])


def test_special_tokens_are_read_only_when_asked(model, dictionary):
    ids = torch.tensor([0, 5, 6, 1])
    assert read_latents(model, dictionary, ids).mask.tolist() == [[False, True, True, False]]
    assert read_latents(model, dictionary, ids, special_tokens=True).mask.all()


def test_a_dictionary_of_another_package_finds_its_hook(model, dictionary):
    other = AutoEncoderTopK(tiny.DIM, 64, k=6)
    other.load_state_dict(dictionary.state_dict())
    other.info = DictionaryInfo(sites=("blocks.1.hook_resid_post",), format="sae_lens")
    assert torch.equal(read_latents(model, other, IDS).dense(), read_latents(model, dictionary, IDS).dense())
    other.info = DictionaryInfo()
    with pytest.raises(ConfigError, match="does not know its site"):
        read_latents(model, other, IDS)
    with pytest.raises(SiteError):
        read_latents(model, other, IDS, site="blocks.77.hook_resid_post")


@pytest.mark.parametrize("bad", ["", [], ["w1", ""], [3.5], None, {"a": 1}], ids=str)
def test_what_is_no_text_is_refused(model, dictionary, bad):
    with pytest.raises(DataError):
        read_latents(model, dictionary, bad)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_attached_edits_are_those_of_a_run(family):
    module = tiny.model(family).eval()
    model = load_model(module, tokenizer=tiny.tokenizer())
    torch.manual_seed(0)
    dictionary = AutoEncoderTopK(tiny.DIM, 64, k=6)
    edit = edit_latents(dictionary, ablate=[3, 9], add={5: 4.0})
    layer = tiny.LAYER[family]
    for site in (layer, f"{layer}:in", f"{layer}.mlp", f"{layer}.{tiny.ATTENTION[family]}"):
        with torch.no_grad():
            expected = model.run(IDS, {site: edit})
            clean = module(IDS, use_cache=False).logits
            with attached(module, {site: edit}) as inside:
                assert inside is module
                torch.testing.assert_close(module(IDS, use_cache=False).logits, expected)
            assert torch.equal(module(IDS, use_cache=False).logits, clean)
        assert not torch.equal(expected, clean)


def test_hooks_go_with_the_block_also_after_an_error(model):
    module = model._original

    def wrong(x):
        return x[:, :1]

    with pytest.raises(SiteError, match="same shape"), attached(module, {SITE: wrong}):
        module(IDS)
    assert not module._forward_pre_hooks and not module.get_submodule(SITE)._forward_hooks
    with pytest.raises(SiteError, match="edited twice"), attached(module, {SITE: wrong, Site(SITE): wrong}):
        pass


def generated(module, ids, mask=None, n=6, **options) -> torch.Tensor:
    return module.generate(
        ids, attention_mask=torch.ones_like(ids) if mask is None else mask, max_new_tokens=n, min_new_tokens=n,
        do_sample=False, pad_token_id=2, **options,
    )[:, ids.shape[1] :]  # fmt: skip


def by_hand(module, ids, edit, n=6, edits_prompt=True, edits_new=True) -> torch.Tensor:
    """Greedy generation without a cache, by a plain hook: ids (1, ctx)."""
    start = ids.shape[1]

    def hook(_, __, output):
        hidden = output[0] if isinstance(output, tuple) else output
        new = edit(hidden)
        special = torch.isin(ids, torch.tensor([0, 1, 2])).unsqueeze(-1)
        position = torch.arange(ids.shape[1]).view(1, -1, 1)
        wanted = ((position < start) & edits_prompt) | ((position >= start) & edits_new)
        new = torch.where(special | ~wanted, hidden, new)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.get_submodule(SITE).register_forward_hook(hook)
    with torch.no_grad():
        for _ in range(n):
            logits = module(ids, use_cache=False).logits[:, -1].clone()
            logits[:, 1] = -torch.inf  # min_new_tokens: no end
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    handle.remove()
    return ids[:, start:]


@pytest.mark.parametrize("when", ["always", "prompt", "generated"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_is_that_of_a_loop_with_plain_hooks(model, dictionary, when, use_cache):
    module, edit = model._original, edit_latents(dictionary, add={5: 6.0}, ablate=[9])
    for prompt in ([0, 4, 5, 6, 7], [9, 12, 30]):
        ids = torch.tensor([prompt])
        expected = by_hand(module, ids, edit, edits_prompt=when != "generated", edits_new=when != "prompt")
        with attached(module, {SITE: edit}, when=when):
            got = generated(module, ids, use_cache=use_cache)
        assert torch.equal(got, expected)
    assert not torch.equal(generated(module, ids), by_hand(module, ids, edit))


def test_a_batch_with_padding_on_the_left_generates_what_each_prompt_does_alone(model, dictionary):
    module, edit = model._original, edit_latents(dictionary, add={5: 6.0})
    prompts = [[0, 4, 5, 6, 7], [0, 9, 12], [0, 30]]
    ids, mask = torch.full((3, 5), 2), torch.zeros(3, 5, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, 5 - len(prompt) :], mask[row, 5 - len(prompt) :] = torch.tensor(prompt), 1
    with attached(module, {SITE: edit}):
        together = generated(module, ids, mask)
        apart = [generated(module, torch.tensor([prompt])) for prompt in prompts]
        beams = generated(module, ids, mask, num_beams=2)
    assert torch.equal(together, torch.cat(apart))
    assert beams.shape == together.shape


def test_edits_work_in_nnsight_s_own_generation(model, dictionary):
    """Values are saved inside the loop: what follows it is not run when generation ends early."""
    import nnsight

    module, edit = model._original, edit_latents(dictionary, add={5: 6.0}, ablate=[9])
    ids = torch.tensor([[9, 12, 30]])
    expected = by_hand(module, ids, edit)
    wrapped = nnsight.TransformersModel(module, tokenizer=tiny.tokenizer())
    with wrapped.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=2) as tracer:
        for _ in tracer.iter[:6]:
            layer = wrapped.model.layers[1]
            output = layer.output
            layer.output = (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)
        result = tracer.result.save()
    # here special tokens would change too, but generation makes none
    assert not set(expected.flatten().tolist()) & {0, 1, 2}
    assert torch.equal(result[:, 3:], expected)
