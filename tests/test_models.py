import gc

import nnsight
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaForCausalLM

from dictionary_learning import IdentityDict, Site, load_model
from dictionary_learning._plain import as_bytes
from dictionary_learning.errors import ConfigError, ModelError, SiteError
from dictionary_learning.interventions import ablate, graft
from tests import tiny

IDS = torch.arange(3, 27).view(2, 12)
SHORT_OF_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried ..."
    ),
    "python": MemoryError(),
    "map": OSError(12, "Cannot allocate memory"),
}


@pytest.mark.parametrize("kind", SHORT_OF_MEMORY)
@pytest.mark.parametrize("moment", ["reading", "moving"])
def test_a_model_that_does_not_fit_says_what_it_needs_and_what_to_do(tmp_path, monkeypatch, kind, moment):
    tiny.save_model(tmp_path)

    def short(*_, **__):
        raise SHORT_OF_MEMORY[kind]

    monkeypatch.setattr("dictionary_learning.models.free_memory", lambda device: 2_000_000_000)
    owner, name = (LlamaForCausalLM, "from_pretrained") if moment == "reading" else (torch.nn.Module, "to")
    monkeypatch.setattr(owner, name, short)
    with pytest.raises(ModelError) as raised:
        load_model(tmp_path, dtype="float32", device="cpu")
    n_bytes = sum(p.numel() for p in tiny.model().parameters()) * 4
    said = f"does not fit: in float32 it has weights of {as_bytes(n_bytes)}, and cpu has 2 GB left. Give dtype='bfloat16', "
    assert said in str(raised.value) and "device_map='auto'" in str(raised.value)
    with pytest.raises(ModelError, match="in bfloat16 .* Give device_map='auto'"):
        load_model(tmp_path, dtype="bfloat16", device="cpu")


def hooked(module: torch.nn.Module, run) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a module's first input and its output, by plain PyTorch hooks."""
    seen = {}

    def before(_, args, kwargs):
        seen["in"] = (args[0] if args else next(iter(kwargs.values()))).clone()

    def after(_, __, output):
        seen["out"] = (output[0] if isinstance(output, tuple) else output).clone()

    handles = [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return seen["in"], seen["out"]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_captured_equals_plain_hooks(family):
    hf = tiny.model(family).eval()
    layer = tiny.LAYER[family]
    paths = [layer, f"{layer}.mlp", f"{layer}.{tiny.ATTENTION[family]}"]
    sites = [Site(path, side) for path in reversed(paths) for side in ("out", "in")]  # not in order of execution
    got = load_model(hf).capture(IDS, None, sites)
    assert list(got) == sites
    for path in paths:
        expected = hooked(hf.get_submodule(path), lambda: hf(IDS, use_cache=False))
        assert torch.equal(got[Site(path, "in")], expected[0])
        assert torch.equal(got[Site(path, "out")], expected[1])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_identity_graft_leaves_logits_unchanged_bit_for_bit(family):
    model = load_model(tiny.model(family))
    layer = tiny.LAYER[family]
    with torch.no_grad():
        clean = model.run(IDS, None)
        for path in (layer, f"{layer}.mlp", f"{layer}.{tiny.ATTENTION[family]}"):
            for site in (Site(path, "in"), Site(path, "out")):
                assert torch.equal(model.run(IDS, None, {site: graft(IdentityDict(tiny.DIM))}), clean), site


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_ablation_changes_only_the_tokens_kept(family):
    model = load_model(tiny.model(family))
    site = Site(tiny.LAYER[family])
    keep = torch.zeros(2, 12, dtype=torch.bool)
    keep[:, 6:] = True
    with torch.no_grad():
        clean, changed = model.run(IDS, None), model.run(IDS, None, {site: ablate(0.0, keep)})
    # a causal model: what comes before the first ablated token cannot know of it
    torch.testing.assert_close(changed[:, :6], clean[:, :6])
    assert (changed[:, 6:] - clean[:, 6:]).abs().amax(-1).min() > 1e-4


def test_edits_at_several_sites_act_together():
    model = load_model(tiny.model("llama"))
    first, last = Site("model.layers.0"), Site("model.layers.2.mlp")
    with torch.no_grad():
        both = model.run(IDS, None, {last: ablate(0.0), first: ablate(0.0)})
        only = model.run(IDS, None, {last: ablate(0.0)})
    assert not torch.equal(both, only)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_text_gives_the_activations_of_unpadded(family, side):
    model = load_model(tiny.model(family))
    site = Site(tiny.LAYER[family])
    alone = model.capture(IDS[:1, :7], None, [site])[site][0]
    ids, mask = torch.full((1, 12), 2), torch.zeros(1, 12, dtype=torch.bool)
    span = slice(5, 12) if side == "left" else slice(0, 7)
    ids[0, span], mask[0, span] = IDS[0, :7], True
    padded = model.capture(ids, mask, [site])[site][0, span]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)


def test_forward_pass_stops_after_the_last_site():
    hf = tiny.model("llama")
    model = load_model(hf)
    model.widths([Site("model.layers.1")])
    ran = []
    model.module.get_submodule("model.layers.2").register_forward_hook(lambda *_: ran.append(2))
    model.capture(IDS, None, [Site("model.layers.1")])
    assert not ran
    model.run(IDS, None)
    assert ran


def test_captured_tensors_are_copies():
    model = load_model(tiny.model("llama"))
    layer = model.module.get_submodule("model.layers.2")
    layer.register_forward_pre_hook(lambda _, args: args[0].zero_())
    site, later = Site("model.layers.1"), Site("model.layers.2")
    assert model.capture(IDS, None, [site, later])[site].abs().max() > 0


def test_callers_model_is_not_changed():
    hf = tiny.model("gpt2").train()
    before = {name: (dict(module.__dict__), module.training) for name, module in hf.named_modules()}
    gradients = {name: p.requires_grad for name, p in hf.named_parameters()}
    tokenizer = tiny.tokenizer(padding_side="right")
    model = load_model(hf, tokenizer=tokenizer)
    model.capture(IDS, None, [Site("transformer.h.1")])
    model.run(IDS, None, {Site("transformer.h.1"): ablate()})
    for name, module in hf.named_modules():
        assert module.__dict__.keys() == before[name][0].keys(), name
        assert module.training is before[name][1], name
    assert {name: p.requires_grad for name, p in hf.named_parameters()} == gradients
    assert tokenizer.padding_side == "right"


def test_weights_are_shared_not_copied():
    hf = tiny.model("llama")
    model = load_model(hf)
    pointers = [p.data_ptr() for p in hf.parameters()]
    assert [p.data_ptr() for p in model.module.parameters()] == pointers


def test_nnsight_objects_are_taken():
    hf, tokenizer = tiny.model("llama"), tiny.tokenizer()
    wrapped = nnsight.TransformersModel(hf, tokenizer=tokenizer, task="text-generation")
    for given in (wrapped, nnsight.NNsight(hf)):
        model = load_model(given)
        site = model.sites(given.model.layers[1].mlp)[0]
        assert site == Site("model.layers.1.mlp")
        assert model.capture(IDS, None, [site])[site].shape == (2, 12, tiny.DIM)
    assert load_model(wrapped).tokenizer is not None


def test_modules_of_the_caller_name_sites():
    hf = tiny.model("neox")
    model = load_model(hf)
    assert model.sites(hf.gpt_neox.layers[2], "in") == [Site("gpt_neox.layers.2", "in")]
    with pytest.raises(SiteError, match="not a part of"):
        model.sites(torch.nn.Linear(2, 2))


def test_child_called_output_is_found():
    # nnsight mounts it under another name, because `output` is the value of a module
    config = BertConfig(vocab_size=97, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = load_model(BertModel(config))
    site = Site("encoder.layer.1.output")
    assert model.capture(IDS, None, [site])[site].shape == (2, 12, 16)


def test_module_that_does_not_run_is_refused():
    hf = tiny.model("llama")
    hf.unused = torch.nn.Linear(2, 2)
    with pytest.raises(SiteError, match="does not run that module"):
        load_model(hf).widths([Site("unused")])


def test_module_without_activations_is_refused():
    with pytest.raises(SiteError, match=r"\(1, 2, dim\) is needed"):
        load_model(_flat()).widths([Site("flat")])


def _flat() -> torch.nn.Module:
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(97, 4)
            self.flat = torch.nn.Flatten()

        def forward(self, input_ids):
            return self.flat(self.embedding(input_ids))

    return Flat()


def test_wrong_shape_of_an_edit_is_refused():
    model = load_model(tiny.model("llama"))
    with pytest.raises(SiteError, match="return the same shape"):
        model.run(IDS, None, {Site("model.layers.1"): lambda x: x[:1]})
    assert model.run(IDS, None).shape == (2, 12, tiny.VOCAB)  # and nothing sticks


def test_gradients_reach_an_edit_and_not_the_model():
    model = load_model(tiny.model("llama"))
    scale = torch.ones((), requires_grad=True)
    model.run(IDS, None, {Site("model.layers.1"): lambda x: x * scale}).logsumexp(-1).sum().backward()
    assert scale.grad is not None
    assert all(p.grad is None for p in model.module.parameters())


def test_tracing_holds_no_activations_afterwards():
    model = load_model(tiny.model("llama"))
    site = [Site("model.layers.1")]
    model.capture(IDS, None, site)

    def alive() -> int:
        return sum(type(o) is torch.Tensor for o in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = alive()
        for _ in range(5):
            model.capture(IDS, None, site)
        assert alive() <= before
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/no/such/model.gguf", "There is no model at"),
        ("./nothing", "There is no model at"),
        ("nobody/no-such-model", "switched off by HF_HUB_OFFLINE"),
    ],
)
def test_missing_model_is_an_error_of_ours(name, said):
    with pytest.raises(ModelError, match=said):
        load_model(name)


def test_folder_without_config_names_what_it_holds(tmp_path):
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ModelError, match=r"It holds m.gguf: name that file"):
        load_model(tmp_path)


def test_saved_folder_loads_with_its_tokenizer(tmp_path):
    hf = tiny.model("llama").eval()
    hf.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype="float32", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(model.run(IDS, None), hf(IDS).logits)
    assert model.tokenizer.bos_token_id == 0
    assert model.describe() == {"name": str(tmp_path), "revision": None, "dtype": "float32"}


@pytest.mark.parametrize(
    "asked", [{"tokenizer": tiny.tokenizer()}, {"dtype": "float16"}, {"revision": "main"}, {"trust_remote_code": True}]
)
def test_a_loaded_model_is_not_asked_to_be_another(asked):
    traced = load_model(tiny.model("llama"), tokenizer=tiny.tokenizer())
    with pytest.raises(ConfigError, match=f"Got {next(iter(asked))}=.*loaded already"):
        load_model(traced, **asked)
    if "tokenizer" not in asked:
        with pytest.raises(ConfigError, match="loaded already"):
            load_model(tiny.model("llama"), **asked)
    assert load_model(traced, tokenizer=traced.tokenizer, dtype=torch.float32, device="cpu") is traced
