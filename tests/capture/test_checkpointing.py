"""Layers that run again while gradients are computed: the same gradients, from fewer kept tensors."""

import json

import pytest
import torch
from torch import nn

from dictionary_learning import ContextStream, load_model, trainSAE
from dictionary_learning.errors import ConfigError, ModelError
from dictionary_learning.sites import Site
from dictionary_learning.trainers import TRAINERS
from tests import shell, tiny

LAYERS = {
    "llama": "model.layers", "gpt2": "transformer.h", "mamba": "backbone.layers", "falcon": "transformer.h",
    "bloom": "transformer.h",
}  # fmt: skip
IDS = torch.arange(1, 41).reshape(4, 10)


def traced(name="llama"):
    return load_model(tiny.model(name), tokenizer=tiny.tokenizer())


def gradients(model, sites, **options):
    """Returns the loss, gradients of what replaced activations, calls of edits, and bytes that were kept."""
    generator, edits, given, n_calls, kept = torch.Generator().manual_seed(0), {}, [], [], {}
    for site in sites:
        rows = torch.randn(4, 10, tiny.DIM, generator=generator).requires_grad_()

        def edit(x, rows=rows):
            n_calls.append(1)
            return x * 0.5 + rows[..., : x.shape[-1]].sin()

        edits[site], given = edit, [*given, rows]

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.run(IDS, edits, **options).float().log_softmax(-1)[..., 3].mean()
    found = torch.autograd.grad(loss, given)
    return loss.detach(), found, len(n_calls), sum(n for place, n in kept.items() if place not in weights)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("sites", [["0"], ["0:in"], ["0", "1:in"], ["0", "1"]], ids=str)
def test_gradients_have_the_same_bits_and_edits_run_once(name, sites):
    model, places = traced(name), [f"{LAYERS[name]}.{site}" for site in sites]
    plain, again = gradients(model, places), gradients(model, places, activation_checkpointing=True)
    assert torch.equal(plain[0], again[0]) and plain[2] == again[2] == len(sites)
    assert all(torch.equal(a, b) and a.abs().max() > 0 for a, b in zip(plain[1], again[1], strict=True))
    if "1" not in sites:  # else no layer is after the last edit
        assert again[3] < plain[3]


@pytest.mark.parametrize(
    "sites",
    [["model.layers.0.mlp"], ["model.layers.1.mlp:in", "model.layers.1"], ["model.layers.1:heads"], ["embedding"]],
    ids=str,
)
def test_edits_within_a_layer_are_applied_once_too(sites):
    model = traced()
    plain, again = gradients(model, sites), gradients(model, sites, activation_checkpointing=True)
    assert torch.equal(plain[0], again[0]) and plain[2] == again[2] == len(sites)
    assert all(torch.equal(a, b) for a, b in zip(plain[1], again[1], strict=True))


def test_layers_run_twice_and_the_model_is_as_before():
    model, calls = traced(), []
    before = model.run(IDS)
    gradients(model, ["model.layers.0"])  # probes the model
    for path, part in model.module.named_modules():
        if path in ("model.layers.0", "model.layers.1", "model.layers.1.mlp"):
            part.register_forward_pre_hook(lambda *_, path=path: calls.append(path))
    attributes = [dict(part.__dict__) for part in model.module.modules()]
    bodies = [part.__dict__["forward"].state.body for part in model.module.modules()]
    gradients(model, ["model.layers.0"], activation_checkpointing=True)
    assert calls.count("model.layers.1.mlp") == 2 and calls.count("model.layers.1") == 1  # the layer's body alone

    def fails(x):
        raise ValueError("an edit that fails")

    with pytest.raises(Exception, match="an edit that fails"):
        model.run(IDS, {"model.layers.0": fails}, activation_checkpointing=True)
    assert [part.__dict__ for part in model.module.modules()] == attributes
    assert all(p.__dict__["forward"].state.body is b for p, b in zip(model.module.modules(), bodies, strict=True))
    assert torch.equal(model.run(IDS), before)


def test_a_model_without_layers_is_refused():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.out = nn.Embedding(50, 8), nn.Linear(8, 50)

        def forward(self, input_ids):
            return self.out(self.embedding(input_ids))

    model = load_model(Plain(), tokenizer=tiny.tokenizer())
    with pytest.raises(ModelError, match="no list of layers that could run again"):
        model.run(IDS, {"embedding": lambda x: x * 2}, activation_checkpointing=True)


def trained(site="model.layers.0", config=None, **options):
    data = ContextStream(tiny.documents(30), traced(), site, ctx_len=16, batch_size=4)
    config = config or {"trainer": "end_to_end", "k": 3, "dict_size": 48, **options}
    (dictionary,) = trainSAE(data, config, 4, progress=False, device="cpu")
    return dictionary.state_dict()


@pytest.mark.parametrize("options", [{}, {"trainer": "batch_top_k", "loss_fn": "ce"}], ids=str)
def test_end_to_end_training_has_the_same_bits(options):
    plain = trained(**options)
    again = trained(**options, activation_checkpointing=True)
    assert all(torch.equal(plain[name], value) for name, value in again.items())
    if not options:
        typed = TRAINERS["end_to_end"].Config(k=3, dict_size=48, activation_checkpointing=True)
        assert all(torch.equal(plain[name], value) for name, value in trained(config=typed).items())


def test_the_shell_and_a_run_file_ask_for_it(tmp_path):
    plain, again, file = shell.trained(tmp_path, ["--trainer", "end_to_end"], ["--activation-checkpointing"])
    assert "activation_checkpointing:\n- true" in (tmp_path / "switched" / "run.yaml").read_text()
    for name, value in plain.items():
        assert torch.equal(again[name], value) and torch.equal(file[name], value)
    config = json.loads((tmp_path / "file" / "trainer_0" / "config.json").read_text())
    assert config["trainer"]["activation_checkpointing"] is True


def test_training_asks_the_model_for_it(monkeypatch):
    from dictionary_learning.models import TracedModel

    run, asked = TracedModel.run, []

    def listens(self, *given, **named):
        asked.append(named.get("activation_checkpointing", False))
        return run(self, *given, **named)

    monkeypatch.setattr(TracedModel, "run", listens)
    trained(activation_checkpointing=True)
    assert asked == [False, True] * 4  # what the untouched model predicts has no gradients
    asked.clear()
    trained()
    assert not any(asked)


def test_it_is_refused_where_the_model_has_no_gradients():
    for options in ({"trainer": "top_k"}, {"trainer": "end_to_end", "loss_fn": "reconstruction"}):
        with pytest.raises(ConfigError, match="activation_checkpointing=True with loss_fn='reconstruction'"):
            trained(**options, activation_checkpointing=True)


def test_a_site_is_not_within_a_layer_at_its_own_sides():
    from dictionary_learning.capture._hookpoints import parts_without

    module, layers = traced().module, ["model.layers.0", "model.layers.1"]
    assert parts_without(module, layers, [Site("model.layers.0"), Site("model.layers.1", "in")]) == layers
    inside = parts_without(module, layers, [Site("model.layers.1.mlp.down_proj", "in")])
    assert inside[0] == "model.layers.0" and "model.layers.1.self_attn" in inside and "model.layers.1.mlp" not in inside
    assert "model.layers.1.mlp.down_proj" in inside
