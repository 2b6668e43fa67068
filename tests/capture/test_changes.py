"""A model that changes after it was loaded, hooks of the caller's, and modules that run several times."""

import functools
import types
import warnings

import pytest
import torch
from transformers import AlbertConfig, AlbertForMaskedLM
from transformers.models.llama.modeling_llama import LlamaMLP

from dictionary_learning import Site, load_model
from dictionary_learning.errors import ModelError, SiteError
from dictionary_learning.interventions import ablate
from tests import tiny
from tests.capture.plain import plain_values

IDS = torch.arange(3, 21).view(2, 9)
LAYER = Site("model.layers.1")


class Adapter(torch.nn.Module):
    """A low-rank adapter that can be disabled and merged, with the attributes of PEFT's."""

    def __init__(self, base):
        super().__init__()
        self.base_layer, self.disabled, self.merged = base, False, []
        self.a, self.b = torch.nn.Linear(16, 2, bias=False), torch.nn.Linear(2, 16, bias=False)

    def forward(self, x):
        out = self.base_layer(x)
        return out if self.disabled or self.merged else out + self.b(self.a(x))

    def merge(self):
        self.base_layer.weight.data += self.b.weight.data @ self.a.weight.data
        self.merged.append("default")


def projection(hf):
    return hf.model.layers[0].self_attn.o_proj


def with_adapter(hf):
    hf.model.layers[0].self_attn.o_proj = Adapter(projection(hf))


def rebound(hf):
    mlp = hf.model.layers[0].mlp
    mlp.forward = types.MethodType(lambda self, x: 3 * type(self).forward(self, x), mlp)


class Doubled(LlamaMLP):
    def forward(self, x):
        return 2 * super().forward(x)


def wrapped(part):
    """Wraps a module's forward as many tools do: in a closure over the bound method."""
    own = part.forward

    @functools.wraps(own)
    def forward(*args, **kwargs):
        output = own(*args, **kwargs)
        return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output

    part.forward = forward


def with_default(part):
    part.forward = lambda x, own=part.forward: 2 * own(x)


def patched_class(hf):
    kind = type(hf.model.layers[0].mlp)
    copied = type(kind.__name__, (kind,), {"forward": kind.forward})
    for layer in hf.model.layers:  # a class of its own, so that other tests keep theirs
        layer.mlp.__class__ = copied
    traced = load_model(hf)
    traced.capture(IDS, sites="model.layers.0.mlp")
    copied.forward = lambda self, x: 2 * kind.forward(self, x)
    return traced


CHANGES = {
    "class": lambda hf: setattr(hf.model.layers[0].mlp, "__class__", Doubled),
    "wrapped": lambda hf: wrapped(hf.model.layers[0]),
    "wrapped twice": lambda hf: [wrapped(hf.model.layers[0].mlp) for _ in range(2)],
    "default": lambda hf: with_default(hf.model.layers[0].mlp),
    "half": lambda hf: hf.half(),
    "float64": lambda hf: hf.to(torch.float64),
    "data": lambda hf: setattr(projection(hf).weight, "data", 2 * projection(hf).weight.data),
    "assigned": lambda hf: hf.load_state_dict({k: 2 * v for k, v in hf.state_dict().items()}, assign=True),
    "in place": lambda hf: hf.load_state_dict({k: 2 * v for k, v in hf.state_dict().items()}),
    "module": lambda hf: setattr(hf.model.layers[0], "mlp", torch.nn.Linear(16, 16)),
    "hook": lambda hf: hf.model.layers[0].register_forward_hook(lambda m, args, out: 2 * out),
    "pre-hook": lambda hf: hf.model.layers[1].register_forward_pre_hook(lambda m, args: (2 * args[0], *args[1:])),
    "parameter": lambda hf: setattr(projection(hf), "weight", torch.nn.Parameter(torch.ones(16, 16))),
    "forward": rebound,
    "implementation": lambda hf: hf.set_attn_implementation("eager"),
    "adapter": with_adapter,
    "adapter disabled": lambda hf: setattr(projection(hf), "disabled", True),
    "adapter merged": lambda hf: projection(hf).merge(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_model_that_changes_after_loading_is_followed(change):
    hf = tiny.model("llama").eval()
    if change.startswith("adapter "):
        with_adapter(hf)
    model = load_model(hf)
    before = model.capture(IDS, sites=LAYER)[LAYER]
    with torch.no_grad():
        CHANGES[change](hf)
        expected = plain_values(hf, LAYER.path, IDS, use_cache=False)[2]
        logits = hf(IDS, use_cache=False).logits
        found = model.capture(IDS, sites=LAYER)[LAYER]
        assert torch.equal(found, expected) and found.dtype == expected.dtype
        assert change == "implementation" or not torch.equal(found, before)
        assert torch.equal(model.run(IDS, {LAYER: lambda x: x}), logits)
    assert model.describe()["dtype"] == str(found.dtype).removeprefix("torch.")


@pytest.mark.parametrize("change", ["half", "hook", "module", "adapter"])
def test_change_that_is_undone_is_followed_too(change):
    hf = tiny.model("llama").eval()
    model = load_model(hf)
    before = model.capture(IDS, sites=LAYER)[LAYER]
    layer, mlp, proj = hf.model.layers[0], hf.model.layers[0].mlp, projection(hf)
    undo = CHANGES[change](hf)
    assert not torch.equal(model.capture(IDS, sites=LAYER)[LAYER], before)
    if change == "hook":
        undo.remove()
    layer.mlp, layer.self_attn.o_proj = mlp, proj
    hf.float()
    torch.testing.assert_close(model.capture(IDS, sites=LAYER)[LAYER], before, atol=0.05, rtol=0.05)


def test_model_that_does_not_change_is_wrapped_once():
    hf = tiny.model("llama")
    model = load_model(hf)
    module = model.module
    for _ in range(2):
        model.capture(IDS, sites=LAYER)
        hf.train()
        hf(IDS)
        hf.eval()
    assert model.module is module


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("with_kwargs", [False, True])
def test_what_the_callers_hook_returns_is_captured_and_edited(side, with_kwargs):
    hf = tiny.model("llama").eval()
    seen = []

    class Recorder:
        def before(self, module, args, *kwargs):
            seen.append("before")
            return ((2 * args[0], *args[1:]), *kwargs) if kwargs else (2 * args[0], *args[1:])

        def after(self, module, args, *rest):
            seen.append("after")
            return 2 * rest[-1]

    layer, recorder = hf.model.layers[1], Recorder()
    if side == "in":
        layer.register_forward_pre_hook(recorder.before, with_kwargs=with_kwargs)
    else:
        layer.register_forward_hook(recorder.after, with_kwargs=with_kwargs)
    model, site = load_model(hf), Site("model.layers.1", side)
    given, _, output = plain_values(hf, site.path, IDS, use_cache=False)
    seen.clear()
    found = model.capture(IDS, sites=[site, "model.layers.2:in"])
    assert torch.equal(found[site], given[0] if side == "in" else output)
    if side == "out":  # what the next module is given
        assert torch.equal(found["model.layers.2:in"], output)
    assert seen  # the caller's own recorder, not a copy
    with torch.no_grad():
        edits = {site: torch.zeros_like, "model.layers.2:in": seen.append}
        model.run(IDS, edits if side == "out" else {site: torch.zeros_like})
    assert side == "in" or not seen[-1].any()  # no hook puts anything back over an edit


class Loop(torch.nn.Module):
    """One block that runs three times, with another module in between."""

    def __init__(self):
        super().__init__()
        self.embed, self.block, self.norm = torch.nn.Embedding(97, 4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for _ in range(3):
            x = self.norm(x + self.block(x))
        return x


def albert():
    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=97,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
    )
    return AlbertForMaskedLM(config).eval()


SHARED = {"loop": (Loop, "block"), "albert": (albert, "albert.encoder.albert_layer_groups.0.albert_layers.0")}


def every_call(module, path):
    seen = []

    def keep(m, args, out):
        seen.append((out[0] if isinstance(out, tuple) else out).clone())

    handle = module.get_submodule(path).register_forward_hook(keep)
    with torch.no_grad():
        module(IDS)
    handle.remove()
    return seen


@pytest.mark.parametrize("kind", SHARED)
def test_call_of_a_shared_module_is_named_to_be_read(kind):
    module, path = SHARED[kind][0](), SHARED[kind][1]
    model, expected = load_model(module), every_call(module, path)
    for asked in (lambda: model.widths(path), lambda: model.capture(IDS, sites=path)):
        with pytest.raises(SiteError, match=rf"has 3 values in a forward pass.*'{path}:out@0' is the first"):
            asked()
    sites = [f"{path}:out@{n}" for n in (2, 0, 1)]  # in any order
    found = model.capture(IDS, sites=[*sites, f"{path}:in@1"])
    for site in sites:
        assert torch.equal(found[site], expected[int(site[-1])]), site
    assert model.widths(sites)[sites[0]] == expected[0].shape[-1]
    with pytest.raises(SiteError, match="runs 3 times"):
        model.widths(f"{path}:out@3")


@pytest.mark.parametrize("kind", SHARED)
def test_edit_of_a_shared_module_reaches_every_call_or_the_one_that_is_named(kind):
    module, path = SHARED[kind][0](), SHARED[kind][1]
    model, calls = load_model(module), []
    with torch.no_grad():
        clean = model.run(IDS)
        assert torch.equal(model.run(IDS, {path: lambda x: calls.append(len(calls))}), clean)
        assert calls == [0, 1, 2]
        edits = {f"{path}:in@1": ablate(), f"{path}:out@1": lambda x: calls.append(x.clone())}
        second = model.run(IDS, edits, special_tokens=True)
    values = every_call(module, path)
    counted = iter(range(3))
    part = module.get_submodule(path)
    zero = part.register_forward_pre_hook(lambda m, args: (0 * args[0], *args[1:]) if next(counted) == 1 else None)
    with torch.no_grad():
        expected = module(IDS)
    zero.remove()
    assert torch.equal(second, getattr(expected, "logits", expected)) and not torch.equal(calls[-1], values[1])
    with pytest.raises(SiteError, match="the same place by different names"):
        model.run(IDS, {path: ablate(), f"{path}:out@1": ablate()})


def test_module_that_runs_less_often_than_when_it_was_probed_is_an_error():
    class Some(Loop):
        def forward(self, input_ids):
            x = self.embed(input_ids)
            for _ in range(2 if input_ids.shape[0] == 1 else 1):
                x = self.block(x)
            return x

    model = load_model(Some())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nnsight's own
        for use in (lambda s: model.capture(IDS, sites=s), lambda s: model.run(IDS, {s: ablate()})):
            with pytest.raises(SiteError, match="ran its module fewer times"):
                use("block:out@1")


def test_trace_inside_an_edit_is_refused_and_another_models_is_not():
    model, other = load_model(tiny.model("llama")), load_model(tiny.model("gpt2"))
    for use in (model.run, lambda ids: model.capture(ids, sites=LAYER), lambda ids: model.widths(LAYER)):
        with pytest.raises(ModelError, match="An edit used LlamaForCausalLM while it ran"):
            model.run(IDS, {LAYER: lambda x, use=use: use(IDS)})
    with torch.no_grad():
        seen = []
        model.run(IDS, {LAYER: lambda x: seen.append(other.run(IDS))})
        assert torch.equal(seen[0], other.run(IDS)) and model.run(IDS).shape == (2, 9, tiny.VOCAB)


def test_patch_of_a_class_is_followed():
    hf = tiny.model("llama").eval()
    traced = patched_class(hf)
    for path in ("model.layers.0.mlp", "model.layers.2"):
        assert torch.equal(traced.capture(IDS, sites=path)[path], plain_values(hf, path, IDS)[2])


@pytest.mark.parametrize("path", ["model.layers.1.mlp", "model.layers.1.self_attn.o_proj", "model.layers.1"])
def test_modules_inside_a_wrapped_forward_are_captured(path):
    hf, calls = tiny.model("llama").eval(), []
    layer = hf.model.layers[1]
    own = layer.forward

    def counted(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    expected = load_model(hf).capture(IDS, sites=path)[path]
    layer.forward = counted
    assert torch.equal(load_model(hf).capture(IDS, sites=path)[path], expected)
    assert calls  # what the wrapper shares with its maker is still shared
    assert layer.forward is counted
