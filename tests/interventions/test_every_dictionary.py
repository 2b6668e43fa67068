"""One door edits the latents of every dictionary at the sites that it knows; compared with plain hooks."""

import contextlib

import jaxtyping
import pytest
import torch

from dictionary_learning import load_model
from dictionary_learning.dictionaries import (
    AutoEncoderTopK,
    Crosscoder,
    CrossLayerTranscoder,
    DictionaryInfo,
    HeadAutoencoders,
    SkipAutoencoder,
    Transcoder,
)
from dictionary_learning.errors import ConfigError, DataError, SiteError, UnknownNameError
from dictionary_learning.interventions import (
    attached,
    combine,
    edit_latents,
    graft,
    latent_edits,
    latent_edits_for,
    read_latents,
    steer,
)
from tests import tiny
from tests.contracts.dictionary_cases import moved

LAYERS = [f"model.layers.{n}" for n in range(3)]
MLPS = [f"{layer}.mlp" for layer in LAYERS]
TOP_K = {"name": "top_k", "k": 6}
DIMS = (tiny.DIM,) * 3
IDS = torch.arange(3, 27).view(2, 12)


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model().eval(), tokenizer=tiny.tokenizer())


def placed(dictionary, sites, targets=()):
    torch.manual_seed(0)
    moved(dictionary)
    dictionary.info = DictionaryInfo(sites=tuple(sites), target_sites=tuple(targets))
    return dictionary


BUILD = {
    "autoencoder": lambda: placed(AutoEncoderTopK(16, 60, 6), [LAYERS[1]]),
    "of an input": lambda: placed(AutoEncoderTopK(16, 60, 6), [f"{MLPS[1]}:in"]),
    "skip": lambda: placed(SkipAutoencoder(16, 60, TOP_K), [LAYERS[1]]),
    "heads": lambda: placed(HeadAutoencoders(16, 60, {"name": "top_k", "k": 3}, n_heads=2), [f"{LAYERS[1]}:heads"]),
    "transcoder": lambda: placed(Transcoder(16, 60, TOP_K, skip=True), [f"{MLPS[1]}:in"], [MLPS[1]]),
    "transcoder by rule": lambda: placed(Transcoder(16, 60, TOP_K), [f"{MLPS[1]}:in"]),
    "several autoencoders": lambda: placed(HeadAutoencoders(48, 60, TOP_K, n_heads=3), LAYERS),
    "cross-layer": lambda: placed(CrossLayerTranscoder(DIMS, 60, TOP_K), [f"{mlp}:in" for mlp in MLPS], MLPS),
}


@contextlib.contextmanager
def hooks(module, reads, writes, change):
    """Adds change(what was read so far, by place)[of a place] to each site that is written, by plain hooks."""
    seen, handles = {}, []

    def at(site, action, is_input):
        path, _, side = site.partition(":")
        path = f"{path}.self_attn.o_proj" if side == "heads" else path
        target = module.get_submodule(path)
        if side in ("in", "heads"):
            handles.append(target.register_forward_pre_hook(lambda _, args: action(args[0])))
        else:
            handles.append(target.register_forward_hook(lambda _, __, out: action(out)))

    for n, site in enumerate(reads):
        at(site, lambda x, n=n: seen.update({n: x}), True)
    for n, site in enumerate(writes):
        at(site, lambda y, n=n: y + change(seen)[n].to(y), False)
    yield
    for handle in handles:
        handle.remove()


def by_hand(dictionary, ablated):
    """Returns what is added at each site when latents are ablated, as far as their inputs are known."""
    n = len(dictionary.info.sites)

    def change(seen):
        like = next(iter(seen.values()))
        x = torch.cat([seen.get(i, torch.zeros_like(like)) for i in range(n)], -1)
        f = dictionary.encode(x)
        new = f.clone()
        new[..., ablated] = 0
        arguments = (x,) if hasattr(dictionary, "W_skip") else ()
        return (dictionary.decode(new, *arguments) - dictionary.decode(f, *arguments)).chunk(n, -1)

    return change


@pytest.mark.parametrize("name", BUILD)
def test_ablating_latents_is_the_edit_by_hand_in_plain_hooks(model, name):
    dictionary, module = BUILD[name](), model._original
    edits = latent_edits(model, dictionary, ablate=list(range(0, 60, 2)))
    reads = dictionary.info.sites
    writes = dictionary.info.target_sites or ([MLPS[1]] if isinstance(dictionary, Transcoder) else reads)
    with torch.no_grad():
        clean = module(IDS).logits
        with hooks(module, reads, writes, by_hand(dictionary, slice(0, 60, 2))):
            expected = module(IDS).logits
        got = model.run(IDS, edits)
        with attached(model, edits):
            inside = module(IDS).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inside, got, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got, clean, atol=1e-2)


@pytest.mark.parametrize("name", BUILD)
def test_changing_nothing_restores_the_clean_logits_bit_by_bit(model, name):
    dictionary = BUILD[name]()
    clean = model.run(IDS)
    assert torch.equal(model.run(IDS, latent_edits(model, dictionary)), clean)
    assert torch.equal(model.run(IDS, latent_edits(model, dictionary, scale={3: 1.0}, add={7: 0.0})), clean)
    assert torch.equal(model.run(*latent_edits_for(model, dictionary, IDS)), clean)


def test_without_the_error_a_site_becomes_what_the_dictionary_says(model):
    one = BUILD["autoencoder"]()
    torch.testing.assert_close(
        model.run(IDS, latent_edits(model, one, keep_error=False)), model.run(IDS, {LAYERS[1]: graft(one)})
    )
    across = BUILD["cross-layer"]()
    seen = []

    def at(n):
        def hook(_, args, __):
            seen.append(args[0])
            x = torch.cat([*seen, *[torch.zeros_like(args[0])] * (2 - n)], -1)
            return across(x).chunk(3, -1)[n]

        return hook

    module = model._original
    handles = [module.get_submodule(mlp).register_forward_hook(at(n)) for n, mlp in enumerate(MLPS)]
    with torch.no_grad():
        expected = module(IDS).logits
    [handle.remove() for handle in handles]
    got = model.run(IDS, latent_edits(model, across, keep_error=False))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def crosscoder():
    return placed(Crosscoder(DIMS, 60, TOP_K), LAYERS)


def test_a_crosscoder_takes_its_latents_from_a_clean_pass(model, crosscoder):
    clean = model.capture(IDS, None, LAYERS)
    x = torch.cat([clean[layer] for layer in LAYERS], -1)
    f = crosscoder.encode(x).detach()
    change = [-f[..., 4:5] * rows[4] + 2.0 * rows[9] for rows in map(torch.detach, crosscoder.site_decoders)]
    onto = {layer: clean[layer] + one for layer, one in zip(LAYERS, change, strict=True)}
    got = latent_edits_for(model, crosscoder, IDS, ablate=[4], add={9: 2.0})
    expected = model.run(IDS, {layer: lambda x, v=value: v for layer, value in onto.items()})
    torch.testing.assert_close(model.run(*got), expected)
    running = latent_edits_for(model, crosscoder, IDS, ablate=[4], add={9: 2.0}, onto="running")
    added = {layer: lambda x, v=one: x + v for layer, one in zip(LAYERS, change, strict=True)}
    torch.testing.assert_close(model.run(*running), model.run(IDS, added))
    some = {layer: edit for layer, edit in running.edits.items() if layer.path == LAYERS[1]}
    torch.testing.assert_close(model.run(IDS, some), model.run(IDS, {LAYERS[1]: added[LAYERS[1]]}))


def test_what_cannot_be_known_in_one_pass_is_refused(model, crosscoder):
    with pytest.raises(ConfigError, match=r"layers.2:out', which the model reaches after 'model.layers.0:out'.*_for"):
        latent_edits(model, crosscoder, ablate=[4])
    concatenated = placed(AutoEncoderTopK(32, 60, 6), LAYERS[:2])
    with pytest.raises(ConfigError, match="latent_edits_for"):
        latent_edits(model, concatenated, ablate=[4])
    backwards = placed(Transcoder(16, 60, TOP_K), [f"{MLPS[2]}:in"], [MLPS[0]])
    with pytest.raises(ConfigError, match="latent_edits_for"):
        latent_edits(model, backwards)
    assert not torch.equal(model.run(*latent_edits_for(model, concatenated, IDS, keep_error=False)), model.run(IDS))


def test_edits_of_a_text_leave_special_tokens_and_padding(model, crosscoder):
    found = latent_edits_for(model, crosscoder, ["<s> w1 w2", "<s> w5 w6 w7"], clamp={3: 9.0})
    seen = {}
    for layer in LAYERS:
        x = torch.randn(2, 4, 16)
        edit = next(edit for site, edit in found.edits.items() if site.path == layer)
        seen[layer] = (edit(x) != x).any(-1)
    expected = [[False, True, True, False], [False, True, True, True]]
    assert all(changed.tolist() == expected for changed in seen.values())
    other = latent_edits_for(model, crosscoder, ["<s> w1 w2", "<s> w5 w6 w7"], clamp={3: 9.0}, onto="running")
    with pytest.raises(ConfigError, match="made for a text of shape"):
        model.run(IDS, other.edits)
    with pytest.raises(DataError, match="mask of tokens|shape"):
        model.run(IDS, found.edits)


def test_edits_of_a_site_follow_each_other(model):
    first, second = BUILD["autoencoder"](), placed(AutoEncoderTopK(16, 40, 4), [LAYERS[1]])
    torch.nn.init.normal_(second.W_enc)
    edits = [
        latent_edits(model, first, ablate=[1, 2, 3], add={5: 3.0}),
        latent_edits(model, second, scale={0: -2.0, 3: 4.0}),
    ]
    one, two = (next(iter(each.values())) for each in edits)
    expected = model.run(IDS, {LAYERS[1]: lambda x: two(one(x))})
    torch.testing.assert_close(model.run(IDS, combine(*edits)), expected)
    with torch.no_grad(), attached(model, edits):
        torch.testing.assert_close(model._original(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model.run(IDS, {LAYERS[1]: lambda x: one(two(x))}), expected)
    transcoder = BUILD["transcoder"]()
    both = combine(latent_edits(model, transcoder, ablate=[2]), edits[0])
    assert {str(site) for site in both} == {f"{MLPS[1]}:in", f"{MLPS[1]}:out", f"{LAYERS[1]}:out"}


@pytest.fixture
def unchecked_types():
    """Leaves types unchecked, as they are for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_what_is_no_edit_is_refused(model, unchecked_types):
    for bad in ([5], [{LAYERS[0]: 5}], ["x"]):
        with pytest.raises(ConfigError, match="mappings from sites to functions"):
            combine(*bad)
    with pytest.raises(UnknownNameError, match="Did you mean 'ablate'"):
        latent_edits(model, BUILD["autoencoder"](), ablat=[3])
    with pytest.raises(ConfigError, match="does not know its site"):
        latent_edits(model, AutoEncoderTopK(16, 60, 6))
    with pytest.raises(ConfigError, match="width 12"):
        latent_edits(model, AutoEncoderTopK(12, 60, 6), site=LAYERS[0])
    with pytest.raises(ConfigError, match="give target"):
        latent_edits(model, Transcoder(16, 60, TOP_K), site=LAYERS[0])
    with pytest.raises(SiteError):
        latent_edits(model, AutoEncoderTopK(16, 60, 6), site="layers.77")


def test_a_mask_of_prompts_is_one_column(model):
    dictionary, module = BUILD["autoencoder"](), model._original
    keep = torch.tensor([[True], [False]])
    for ids in (IDS, IDS[:, :5]):
        got = model.run(ids, latent_edits(model, dictionary, add={5: 4.0}, keep=keep))
        clean, whole = model.run(ids), model.run(ids, latent_edits(model, dictionary, add={5: 4.0}))
        torch.testing.assert_close(got[0], whole[0])
        assert torch.equal(got[1], clean[1])
    with torch.no_grad(), attached(module, {LAYERS[1]: edit_latents(dictionary, add={5: 4.0}, keep=keep)}):
        made = module.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=2)
    assert torch.equal(made[1], module.generate(IDS[1:], max_new_tokens=4, do_sample=False, pad_token_id=2)[0])


class Twice(torch.nn.Module):
    """One layer that runs twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.layer = torch.nn.Embedding(97, 16), torch.nn.Linear(16, 16)

    def forward(self, input_ids):
        return self.layer(self.layer(self.embedding(input_ids)).tanh())


@pytest.mark.parametrize("call", ["", "@0", "@1"])
def test_attached_edits_the_call_that_a_site_names(call):
    module = Twice()
    model = load_model(module, tokenizer=tiny.tokenizer())
    edit = steer(torch.ones(16), 2.0)
    with torch.no_grad():
        expected = model.run(IDS, {f"layer:out{call}": edit})
        with attached(model, {f"layer:out{call}": edit}):
            for _ in range(2):
                torch.testing.assert_close(module(IDS), expected)


def test_the_mask_to_run_with_counts_special_tokens_too(model):
    reading = read_latents(model, BUILD["autoencoder"](), ["<s> w1 w2", "<s> w4"])
    assert reading.attention_mask.tolist() == [[True] * 3, [True, True, False]]
    assert reading.mask.tolist() == [[False, True, True], [False, True, False]]
