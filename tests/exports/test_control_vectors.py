"""Control vectors: what llama.cpp adds is what a steering edit adds."""

import numpy as np
import pytest
import torch

import dictionary_learning as dl
from dictionary_learning import load_model
from dictionary_learning.dictionaries import DictionaryInfo
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.exports import control_direction, write_control_vector
from dictionary_learning.interventions import steer
from tests import tiny

gguf = pytest.importorskip("gguf")


def placed(site: str, target: str | None = None):
    torch.manual_seed(0)
    made = dl.AutoEncoder(tiny.DIM, 32)
    made.info = DictionaryInfo(sites=(site,), target_sites=() if target is None else (target,))
    return made


def read(path) -> tuple[dict, dict]:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def test_file_is_read_by_gguf(tmp_path):
    dictionary = placed("model.layers.2")
    layer, vector = control_direction(dictionary, {5: 3.0, 7: -0.5})
    path = write_control_vector({layer: vector, 1: 2 * vector}, tmp_path / "new" / "cats.gguf", model_hint="qwen2")
    fields, tensors = read(path)
    assert fields["general.architecture"] == "controlvector" and fields["controlvector.model_hint"] == "qwen2"
    assert fields["controlvector.layer_count"] == 2
    assert list(tensors) == ["direction.1", "direction.2"]
    assert tensors["direction.2"].tensor_type == gguf.GGMLQuantizationType.F32
    rows = dictionary.W_dec.detach()
    assert np.allclose(tensors["direction.2"].data, 3.0 * rows[5] - 0.5 * rows[7], atol=1e-6)
    assert np.allclose(tensors["direction.1"].data, 2 * tensors["direction.2"].data)


def test_vector_at_its_layer_is_what_steering_does(tmp_path):
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
    dictionary = placed("model.layers.1")
    layer, vector = control_direction(dictionary, {4: 2.0})
    path = write_control_vector({layer: vector}, tmp_path / "a.gguf")
    _, tensors = read(path)
    ((name, tensor),) = tensors.items()
    ids = torch.arange(3, 15).view(1, -1)
    steered = model.run(ids, {"model.layers.1": steer(dictionary.W_dec[4].detach(), 2.0)})
    module = tiny.model()
    layer_number = int(name.removeprefix("direction."))
    added = torch.tensor(np.array(tensor.data))
    # what llama.cpp does: added to what the layer returns
    module.model.layers[layer_number].register_forward_hook(lambda m, i, out: out + added)
    with torch.no_grad():
        assert (module(ids).logits - steered).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("site", "layer"),
    [("model.layers.3:out", 3), ("model.layers.3:in", 2), ("transformer.h.4", 4), ("blocks.6.hook_resid_post", 6),
     ("blocks.6.hook_resid_pre", 5), ("gpt_neox.layers.10", 10)],
)  # fmt: skip
def test_site_says_the_layer(site, layer):
    assert control_direction(placed(site), {0: 1.0}).layer == layer
    assert control_direction(placed("model.layers.0.mlp:in", site), {0: 1.0}).layer == layer


@pytest.mark.parametrize("site", ["model.layers.3.mlp", "model.layers.3:out[1]", "embedding", "blocks.3.hook_mlp_out"])
def test_other_sites_need_a_layer(site):
    with pytest.raises(ConfigError, match="layer="):
        control_direction(placed(site), {0: 1.0})
    assert control_direction(placed(site), {0: 1.0}, layer=7).layer == 7


def test_what_llama_cpp_does_not_add_is_refused(tmp_path):
    ones = torch.ones(4)
    for directions, message in (
        ({0: ones}, "layers 1 and later"),
        ({}, "a vector for each"),
        ({1: ones, 2: torch.ones(5)}, "one vector"),
        ({1: torch.ones(2, 2)}, "one vector"),
        ({1: ones * float("inf")}, "not finite"),
    ):
        with pytest.raises(ConfigError, match=message):
            write_control_vector(directions, tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []


def test_wrong_strengths_and_dictionaries_are_refused():
    for strengths in ({}, {32: 1.0}, {-1: 1.0}, {0: float("nan")}):
        with pytest.raises(ConfigError):
            control_direction(placed("model.layers.3"), strengths)
    for made in (dl.Crosscoder([8, 8], 16, {"name": "relu"}), dl.CrossLayerTranscoder([8, 8], 16, {"name": "relu"})):
        with pytest.raises(CheckpointError, match="one place"):
            control_direction(made, {0: 1.0}, layer=1)
