"""What circuit-tracer computes from our files is what our dictionaries compute."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import dictionary_learning as dl
from dictionary_learning.dictionaries import CrossLayerTranscoder, DictionaryInfo, SkipAutoencoder, Transcoder
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.exports import write_circuit_tracer

D, F, L = 16, 40, 3
TOLERANCE = 1e-5
KEYS = {"W_enc", "W_dec", "b_enc", "b_dec", "activation_function.threshold", "W_skip"}


def encode(pre: Tensor, threshold: Tensor | None, k: int | None = None) -> Tensor:
    """Returns latents as circuit-tracer has them: strictly above a threshold, or the k largest, or relu."""
    if k is not None:
        values, indices = pre.topk(k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, indices, values)
    return pre.relu() if threshold is None else pre * (pre > threshold)


def layer_forward(folder: Path, layer: int, x: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
    """Returns latents and output from the files alone, with the strict keys of circuit-tracer's reader."""
    tensors = load_file(folder / f"layer_{layer}.safetensors")
    assert {"W_enc", "W_dec", "b_enc", "b_dec"} <= set(tensors) <= KEYS
    latents = encode(x @ tensors["W_enc"].T + tensors["b_enc"], tensors.get("activation_function.threshold"), k)
    out = latents @ tensors["W_dec"] + tensors["b_dec"]
    return latents, out + x @ tensors["W_skip"].T if "W_skip" in tensors else out


def cross_layer_forward(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns latents (layers, batch, F) and outputs (layers, batch, D)."""
    out, all_latents = torch.zeros(L, len(x[0]), D), []
    has_threshold = "threshold_0" in load_file(folder / "W_enc_0.safetensors")
    for layer in range(L):
        tensors = load_file(folder / f"W_enc_{layer}.safetensors")
        assert set(tensors) == {f"{n}_{layer}" for n in ("W_enc", "b_enc", "b_dec")} | (
            {f"threshold_{layer}"} if has_threshold else set()
        )
        threshold = tensors[f"threshold_{layer}"] if has_threshold else None
        latents = encode(x[layer] @ tensors[f"W_enc_{layer}"].T + tensors[f"b_enc_{layer}"], threshold)
        with safe_open(folder / f"W_dec_{layer}.safetensors", "pt") as file:
            rows = file.get_slice(f"W_dec_{layer}")
            assert rows.get_shape() == [latents.shape[1], L - layer, D]
            for written in range(layer, L):
                out[written] += latents @ rows[:, written - layer, :]
        out[layer] += tensors[f"b_dec_{layer}"]
        all_latents.append(latents)
    return torch.stack(all_latents), out


def filled(dictionary, seed: int = 0):
    """Gives a dictionary random weights, biases and thresholds of different norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in dictionary.named_parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
            if "threshold" in name:
                tensor.abs_()
        for module in dictionary.modules():
            if hasattr(module, "has_threshold"):
                module.threshold.fill_(0.35)
    return dictionary.eval()


def placed(dictionary, layer: int, model: str = "HuggingFaceTB/SmolLM2-135M"):
    path = f"model.layers.{layer}.mlp"
    dictionary.info = DictionaryInfo(sites=(f"{path}:in",), target_sites=(f"{path}:out",), model=model)
    return dictionary


def inputs() -> Tensor:
    return torch.randn(64, D, generator=torch.Generator().manual_seed(1))


NONLINEARITIES = ["relu", "jump_relu", "gated", {"name": "batch_top_k", "k": 4}]


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=str)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("rank_by_norm", [False, True])
def test_layers_compute_what_ours_compute(tmp_path, nonlinearity, skip, rank_by_norm):
    options = nonlinearity if isinstance(nonlinearity, dict) else {"name": nonlinearity}
    made = [
        placed(filled(Transcoder(D, F, options, skip=skip, rank_by_norm=rank_by_norm), layer), layer)
        for layer in range(L)
    ]
    before = [{n: t.clone() for n, t in one.state_dict().items()} for one in made]
    write_circuit_tracer(made[::-1], tmp_path)  # the sites say the order
    x = inputs()
    for layer, one in enumerate(made):
        latents, out = layer_forward(tmp_path, layer, x)
        assert (latents - one.encode(x)).abs().max() <= TOLERANCE
        assert (out - one.decode(one.encode(x), x)).abs().max() <= TOLERANCE
        assert 0 < (latents != 0).float().mean() < 0.9
        assert all(torch.equal(t, before[layer][n]) for n, t in one.state_dict().items())


def test_scales_of_training_are_folded(tmp_path):
    made = placed(filled(Transcoder(D, F, {"name": "batch_top_k", "k": 4}, skip=True)), 0)
    x = inputs()
    scaled_in, scaled_out = 3.0, 0.25
    inside = made.decode(made.encode(x / scaled_in), x / scaled_in) * scaled_out
    made.scale_(scaled_in, scaled_out)
    write_circuit_tracer([made], tmp_path)
    assert (layer_forward(tmp_path, 0, x)[1] - inside).abs().max() <= TOLERANCE


def test_subtracted_b_dec_is_folded(tmp_path):
    made = placed(filled(SkipAutoencoder(D, F, {"name": "jump_relu"})), 0)
    assert made.apply_b_dec_to_input
    write_circuit_tracer([made], tmp_path)
    x = inputs()
    latents, out = layer_forward(tmp_path, 0, x)
    assert (latents - made.encode(x)).abs().max() <= TOLERANCE
    assert (out - made.decode(made.encode(x), x)).abs().max() <= TOLERANCE


def test_all_negative_row_has_no_latents(tmp_path):
    made = placed(filled(Transcoder(D, F, {"name": "batch_top_k", "k": 4})), 0)
    with torch.no_grad():
        made.b_enc.fill_(-100.0)
    write_circuit_tracer([made], tmp_path)
    latents, out = layer_forward(tmp_path, 0, inputs())
    assert not latents.any() and not made.encode(inputs()).any()
    assert torch.allclose(out, made.b_dec.expand_as(out))


def test_pre_activation_equal_to_its_threshold_is_silent(tmp_path):
    made = placed(Transcoder(D, D, {"name": "jump_relu"}), 0).eval()
    with torch.no_grad():
        made.W_enc.copy_(torch.eye(D))
        made.nonlinearity.threshold.fill_(0.5)
    write_circuit_tracer([made], tmp_path)
    x = torch.full((2, D), 0.5)
    x[1] = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    latents, _ = layer_forward(tmp_path, 0, x)
    assert torch.equal(latents, made.encode(x)) and not latents[0].any() and latents[1].all()


def test_top_k_is_exported_by_its_threshold(tmp_path):
    made = placed(filled(Transcoder(D, F, {"name": "top_k", "k": 4})), 0)
    write_circuit_tracer([made], tmp_path)
    assert "activation" not in yaml.safe_load((tmp_path / "config.yaml").read_text())
    other = dl.expand_or_convert(made, nonlinearity={"name": "jump_relu"})
    latents, _ = layer_forward(tmp_path, 0, inputs())
    assert (latents - other.encode(inputs())).abs().max() <= TOLERANCE


def test_top_k_is_exported_with_its_k(tmp_path):
    made = placed(filled(Transcoder(D, F, {"name": "top_k", "k": 4})), 0)
    write_circuit_tracer([made], tmp_path, selection="top_k")
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (config["activation"], config["k"]) == ("topk", 4)
    x = inputs()
    latents, _ = layer_forward(tmp_path, 0, x, k=4)
    rows = (made.pre_activations(x) > 0).sum(-1) >= 4
    assert rows.float().mean() > 0.9 and (latents - made.encode(x))[rows].abs().max() <= TOLERANCE


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=str)
def test_cross_layer_computes_what_ours_computes(tmp_path, nonlinearity):
    options = nonlinearity if isinstance(nonlinearity, dict) else {"name": nonlinearity}
    made = filled(CrossLayerTranscoder([D] * L, F * L, options))
    paths = [f"model.layers.{layer}.mlp" for layer in range(L)]
    made.info = DictionaryInfo(sites=tuple(f"{p}:in" for p in paths), target_sites=tuple(f"{p}:out" for p in paths))
    with pytest.raises(CheckpointError, match="do not say it. Give model_name="):
        write_circuit_tracer(made, tmp_path)
    write_circuit_tracer(made, tmp_path, model_name="tiny")
    x = torch.randn(L, 32, D, generator=torch.Generator().manual_seed(2))
    flat = torch.cat(list(x), dim=-1)
    latents, out = cross_layer_forward(tmp_path, x)
    assert (torch.cat(list(latents), -1) - made.encode(flat)).abs().max() <= TOLERANCE
    # sums over three layers
    assert (torch.cat(list(out), -1) - made.decode(made.encode(flat))).abs().max() <= 2 * TOLERANCE
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["model_kind"] == "cross_layer_transcoder" and "transcoders" not in config


def test_config_names_files_and_hooks(tmp_path):
    made = [placed(filled(Transcoder(D, F, {"name": "relu"}), layer), layer) for layer in range(2)]
    write_circuit_tracer(made, tmp_path / "here")
    config = yaml.safe_load((tmp_path / "here" / "config.yaml").read_text())
    assert config["model_kind"] == "transcoder_set" and config["model_name"] == "HuggingFaceTB/SmolLM2-135M"
    assert (config["feature_input_hook"], config["feature_output_hook"]) == ("mlp.hook_in", "mlp.hook_out")
    assert [Path(one).is_file() for one in config["transcoders"]] == [True, True]
    write_circuit_tracer(made, tmp_path / "hub", repository="me/mine", feature_output_hook="hook_mlp_out")
    config = yaml.safe_load((tmp_path / "hub" / "config.yaml").read_text())
    assert config["transcoders"][1] == "hf://me/mine/layer_1.safetensors" and config["scan"] == "me/mine"
    assert config["feature_output_hook"] == "hook_mlp_out"
    write_circuit_tracer(made, tmp_path / "hub", repository="me/mine")  # again, over itself


def test_hooks_of_transformer_lens_and_gemma_are_known(tmp_path):
    made = filled(Transcoder(D, F, {"name": "relu"}))
    for site, target, hooks in (
        ("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out", ("mlp.hook_in", "hook_mlp_out")),
        ("model.layers.0.pre_feedforward_layernorm:out", "model.layers.0.post_feedforward_layernorm:out",
         ("mlp.hook_in", "hook_mlp_out")),
    ):  # fmt: skip
        made.info = DictionaryInfo(sites=(site,), target_sites=(target,))
        write_circuit_tracer([made], tmp_path, model_name="tiny")
        config = yaml.safe_load((tmp_path / "config.yaml").read_text())
        assert (config["feature_input_hook"], config["feature_output_hook"]) == hooks


def wrong_sets() -> dict[str, tuple[list, str]]:
    def plain(layer: int, **options):
        made = {"activation_dim": D, "dict_size": F, "nonlinearity": {"name": "relu"}, **options}
        return placed(filled(Transcoder(**made)), layer)

    unlearned = placed(Transcoder(D, F, {"name": "batch_top_k", "k": 4}), 0)
    crossing = CrossLayerTranscoder([D, D], 2 * F, {"name": "relu"})
    not_finite = plain(0)
    with torch.no_grad():
        not_finite.W_dec[0, 0] = float("nan")
    nowhere = plain(0)
    nowhere.info = DictionaryInfo()
    return {
        "none": ([], "no transcoders"),
        "missing layer": ([plain(0), plain(2)], r"layers \[0, 2\]"),
        "twice": ([plain(0), plain(0)], r"layers \[0, 0\]"),
        "sizes": ([plain(0), plain(1, dict_size=2 * F)], "one number of latents"),
        "widths": ([plain(0, output_dim=8)], "one width"),
        "autoencoder": ([placed(dl.AutoEncoderTopK(D, F, 4), 0)], "AutoEncoderTopK"),
        "crosscoder": ([placed(dl.Crosscoder([D], F, {"name": "relu"}), 0)], "Crosscoder"),
        "signed": ([plain(0, nonlinearity={"name": "abs_top_k", "k": 4})], "AbsTopK"),
        "no threshold": ([unlearned], "learned no threshold"),
        "crossing among others": ([plain(0), crossing], "Give it alone"),
        "uneven": (CrossLayerTranscoder([D, 8], 2 * F, {"name": "relu"}), "one width"),
        "not finite": ([not_finite], "not finite"),
        "nowhere": ([nowhere], "feature_input_hook="),
    }


@pytest.mark.parametrize("name", wrong_sets())
def test_what_the_format_cannot_express_is_refused(tmp_path, name):
    made, message = wrong_sets()[name]
    with pytest.raises(CheckpointError, match=message):
        write_circuit_tracer(made, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_other_sets_and_names_are_refused(tmp_path):
    made = [placed(filled(Transcoder(D, F, {"name": "relu"}), layer), layer) for layer in range(2)]
    write_circuit_tracer(made, tmp_path)
    with pytest.raises(CheckpointError, match="layer_1.safetensors of another set"):
        write_circuit_tracer(made[:1], tmp_path)
    with pytest.raises(CheckpointError, match="selection='top_k' is for TopK"):
        write_circuit_tracer(made, tmp_path, selection="top_k")
    for repository in ("mine", "me/gemma-scope-mine"):
        with pytest.raises(ConfigError, match="user/name"):
            write_circuit_tracer(made, tmp_path, repository=repository)
