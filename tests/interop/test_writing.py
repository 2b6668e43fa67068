"""What is written is read again as the same dictionary, and what a format cannot express is refused."""

import json

import pytest
import torch

from dictionary_learning import DictionaryInfo, fold_decoder_norm_, load_dictionary, save_dictionary
from dictionary_learning.cli import main
from dictionary_learning.dictionaries import (
    AbsTopKSAE,
    AutoEncoder,
    AutoEncoderNew,
    AutoEncoderTopK,
    BatchTopKSAE,
    Crosscoder,
    GatedAutoEncoder,
    GroupMaxSAE,
    HeadAutoencoders,
    IdentityDict,
    JumpReluAutoEncoder,
    MatchingPursuitSAE,
    MatryoshkaBatchTopKSAE,
    Normalized,
    SkipAutoencoder,
    SparseAutoencoder,
    Transcoder,
)
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop import convert, write_dictionary
from tests.interop import golden

X = torch.randn(20, 12, generator=torch.Generator().manual_seed(2))
TOP_K = {"name": "top_k", "k": 4}
PURSUIT = {"name": "stopped_pursuit", "k": 5, "residual_threshold": 0.5}
BUILD = {
    "relu": lambda: AutoEncoder(12, 40),
    "relu_uncentered": lambda: AutoEncoder(12, 40, apply_b_dec_to_input=False),
    "new": lambda: AutoEncoderNew(12, 40),
    "gated": lambda: GatedAutoEncoder(12, 40),
    "top_k": lambda: AutoEncoderTopK(12, 40, 4),
    "batch_top_k": lambda: BatchTopKSAE(12, 40, 4),
    "matryoshka": lambda: MatryoshkaBatchTopKSAE(12, 40, 4, [10, 30]),
    "jump_relu": lambda: JumpReluAutoEncoder(12, 40, 0.2),
    "jump_relu_centered": lambda: JumpReluAutoEncoder(12, 40, 0.2, apply_b_dec_to_input=True),
    "group_max": lambda: GroupMaxSAE(12, 40, 4),
    "uneven_groups": lambda: GroupMaxSAE(12, 40, 3),
    "abs_top_k": lambda: AbsTopKSAE(12, 40, 4),
    "pursuit": lambda: SparseAutoencoder(12, 40, PURSUIT),
    "own_pursuit": lambda: MatchingPursuitSAE(12, 40, 4),
    "transcoder": lambda: Transcoder(12, 40, {"name": "relu"}, output_dim=7),
    "skip_transcoder": lambda: Transcoder(12, 40, {"name": "jump_relu", "initial_threshold": 0.2}, skip=True),
    "top_k_transcoder": lambda: Transcoder(12, 40, TOP_K, skip=True),
    "narrow_transcoder": lambda: Transcoder(12, 40, TOP_K, output_dim=7),
    "skip": lambda: SkipAutoencoder(12, 40, TOP_K),
    "layer_norm": lambda: Normalized(AutoEncoderTopK(12, 40, 4), "layer_norm_eps_in"),
    "own_layer_norm": lambda: Normalized(AutoEncoderTopK(12, 40, 4), "layer_norm"),
    "scaled": lambda: Normalized(AutoEncoder(12, 40), None, scales=[2.0]),
    "ranked": lambda: AutoEncoderTopK(12, 40, 4, rank_by_norm=True),
    "crosscoder": lambda: Crosscoder((4, 8), 40, TOP_K),
    "heads": lambda: HeadAutoencoders(12, 40, TOP_K, n_heads=2),
    "identity": lambda: IdentityDict(12),
}
"""Dictionaries, of which each format can express some."""
EXPRESSED = {
    "dictionary_learning": {
        *("relu", "relu_uncentered", "new", "gated", "top_k", "batch_top_k", "matryoshka", "jump_relu"),
    },
    "sparsify": {"top_k", "group_max", "top_k_transcoder", "skip"},
    "sae_lens": {
        *("relu", "relu_uncentered", "new", "gated", "top_k", "batch_top_k", "matryoshka", "jump_relu"),
        *("jump_relu_centered", "abs_top_k", "pursuit", "transcoder", "skip_transcoder", "layer_norm"),
    },
    "own": set(BUILD),
}
CHANGED = {
    ("sae_lens", "batch_top_k"),
    ("sae_lens", "matryoshka"),
    ("sae_lens", "new"),
    ("dictionary_learning", "relu_uncentered"),
}
"""Those that come back as another class with the same latents."""


def build(name: str):
    dictionary = BUILD[name]().requires_grad_(False)
    for tensor_name, tensor in dictionary.state_dict().items():
        if tensor_name.endswith("threshold") and tensor.ndim == 0:
            tensor.fill_(0.4)
        elif tensor.numel():
            tensor.add_(0.2 * torch.rand_like(tensor))
    return dictionary


@pytest.mark.parametrize(("to", "name"), [(to, name) for to in EXPRESSED for name in sorted(EXPRESSED[to])])
def test_written_and_read_is_the_same(to, name, tmp_path):
    dictionary = build(name)
    before = {key: tensor.clone() for key, tensor in dictionary.state_dict().items()}
    loaded = load_dictionary(write_dictionary(dictionary, tmp_path / "d", to))
    assert torch.equal(loaded(X), dictionary(X))
    assert torch.equal(loaded.encode(X), dictionary.encode(X))
    if (to, name) not in CHANGED:
        assert type(loaded) is type(dictionary)
        state = loaded.state_dict()
        for key, tensor in before.items():
            if not (key.endswith("threshold") and tensor.ndim == 0 and to != "dictionary_learning"):
                assert torch.equal(state[key], tensor) or to == "own"
    assert all(torch.equal(dictionary.state_dict()[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize(
    ("to", "name"), [(to, name) for to in EXPRESSED for name in sorted(BUILD) if name not in EXPRESSED[to]]
)
def test_what_cannot_be_expressed_is_refused_with_the_reason(to, name, tmp_path):
    with pytest.raises(CheckpointError, match=r"(has|have|decodes|ranks|subtract|adds|normalizes|there).*\.") as caught:
        write_dictionary(build(name), tmp_path / "d", to)
    assert len(str(caught.value)) > 60
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("name", golden.NAMES)
def test_golden_checkpoints_survive_every_format_that_can_hold_them(name, tmp_path):
    dictionary = load_dictionary(golden.folder(name), **golden.FACTS.get(name, {}))
    x = golden.io(name)["x"]
    expected = dictionary.encode(x), dictionary(x)
    written = 0
    for to in EXPRESSED:
        try:
            folder = write_dictionary(dictionary, tmp_path / to, to)
        except CheckpointError:
            assert to != "own"
            continue
        loaded = load_dictionary(folder)
        assert torch.equal(loaded.encode(x), expected[0]) and torch.equal(loaded(x), expected[1]), to
        written += 1
    assert written >= 1


SAME_FORMAT = [n for n in golden.NAMES if golden.format_of(n) in ("dictionary_learning", "sparsify", "sae_lens")]
REFUSED = {"saelens_legacy/tanh_relu", "sparsify/legacy_2024-08_signed"}
"""What the packages of today would read otherwise than those of the time."""


@pytest.mark.parametrize("name", [name for name in SAME_FORMAT if name not in REFUSED])
def test_a_second_round_trip_changes_no_bit(name, tmp_path):
    to = golden.format_of(name)
    first = load_dictionary(golden.folder(name))
    second = load_dictionary(write_dictionary(first, tmp_path / "a", to))
    third = load_dictionary(write_dictionary(second, tmp_path / "b", to))
    for file in (tmp_path / "a").iterdir():
        if file.suffix in (".safetensors",):
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    for key, tensor in second.state_dict().items():
        assert torch.equal(third.state_dict()[key], tensor)


def test_ranking_by_norm_is_folded_first(tmp_path):
    dictionary = build("ranked")
    with pytest.raises(CheckpointError, match="fold_decoder_norm_"):
        write_dictionary(dictionary, tmp_path / "d", "sae_lens")
    fold_decoder_norm_(dictionary)
    loaded = load_dictionary(write_dictionary(dictionary, tmp_path / "d", "sae_lens"))
    torch.testing.assert_close(loaded(X), dictionary(X))


def test_dtype_is_written(tmp_path):
    dictionary = build("jump_relu").bfloat16()
    loaded = load_dictionary(write_dictionary(dictionary, tmp_path / "d", "sae_lens"), dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16 and loaded.threshold.dtype == torch.float32
    assert json.loads((tmp_path / "d" / "cfg.json").read_text())["dtype"] == "bfloat16"


def test_command_converts_all_of_a_run(tmp_path, capsys):
    source = golden.folder("sparsify/multi_hookpoint")
    assert main(["convert", str(source), str(tmp_path), "--to", "sae_lens"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["layers.0", "layers.10", "layers.2"]
    loaded = load_dictionary(tmp_path, site="layers.2")
    expected = golden.io("sparsify/multi_hookpoint/layers.2")
    golden.check_latents(loaded.encode(expected["x"]), expected["latents"])
    assert loaded.info.sites == ("blocks.2.hook_resid_post",)


def test_command_takes_names_of_transformer_lens(tmp_path):
    named = ["--hook-name", "blocks.5.hook_mlp_out", "--model-name", "gpt2-small"]
    assert main(["convert", str(golden.folder("sparsify/topk")), str(tmp_path), "--to", "sae_lens", *named]) == 0
    assert load_dictionary(tmp_path).info.sites == ("blocks.5.hook_mlp_out",)
    assert json.loads((tmp_path / "cfg.json").read_text())["metadata"]["model_name"] == "gpt2-small"


def test_command_says_why_not(tmp_path, caplog):
    assert main(["convert", str(golden.folder("sparsify/groupmax")), str(tmp_path / "d"), "--to", "sae_lens"]) == 2
    assert "SAELens has no autoencoder with GroupMax" in caplog.text
    assert main(["convert", str(golden.folder("sparsify/groupmax")), str(tmp_path / "d"), "--to", "openai"]) == 2
    assert "read as openai, and not written" in caplog.text


def test_one_site_of_a_run_is_converted_alone(tmp_path):
    source = golden.folder("sparsify/multi_hookpoint")
    assert convert(source, tmp_path / "d", "dictionary_learning", site="layers.10") == [tmp_path / "d"]
    assert type(load_dictionary(tmp_path / "d")) is AutoEncoderTopK


def test_what_other_packages_said_stays_in_own_files(tmp_path):
    dictionary = load_dictionary(golden.folder("saelens/topk"))
    for folder in (save_dictionary(dictionary, tmp_path / "a"), write_dictionary(dictionary, tmp_path / "b", "own")):
        again = load_dictionary(folder)
        assert again.info.config["converted_from"]["format"] == "sae_lens" and again.info.model == "gelu-1l"
        assert torch.equal(again.W_enc, dictionary.W_enc)


@pytest.mark.parametrize("name", ["saelens/standard_hook_z", "saelens_legacy/hook_z"])
def test_heads_stay_apart_in_what_is_written(name, tmp_path):
    dictionary = load_dictionary(golden.folder(name))
    write_dictionary(dictionary, tmp_path / "d", "sae_lens")
    assert json.loads((tmp_path / "d" / "cfg.json").read_text())["reshape_activations"] == "hook_z"


def test_a_model_without_a_name_is_left_out_and_asked_for(tmp_path, caplog):
    dictionary = AutoEncoderTopK(8, 16, 2)
    unnamed = {"name": None, "label": "LlamaForCausalLM", "revision": None, "dtype": "float32"}
    config = {"site": "model.layers.1:out", "buffer": {"model": unnamed}}
    dictionary.info = DictionaryInfo.from_config(config)
    write_dictionary(dictionary, tmp_path / "unnamed", "sae_lens")
    assert "model_name" not in json.loads((tmp_path / "unnamed" / "cfg.json").read_text())["metadata"]
    assert "give model_name=" in caplog.text
    write_dictionary(dictionary, tmp_path / "named", "sae_lens", model_name="gpt2")
    assert json.loads((tmp_path / "named" / "cfg.json").read_text())["metadata"]["model_name"] == "gpt2"
