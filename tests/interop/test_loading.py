"""Runs of several dictionaries, names that people know, and what cannot be decided."""

import shutil
import sys
import types

import pytest
import torch

from dictionary_learning import AutoEncoder, AutoEncoderTopK, Sae, load_dictionary, load_many, save_dictionary, trainSAE
from dictionary_learning.dictionaries import BatchTopKSAE, JumpReluAutoEncoder
from dictionary_learning.dictionaries._normalized import Normalized
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.interop._archives import Inert, read_pt
from dictionary_learning.interop._loading import write_dictionary
from dictionary_learning.sites import natural_key
from tests import tiny
from tests.interop import golden


def test_sites_come_in_natural_order():
    found = load_many(golden.folder("sparsify/multi_hookpoint"))
    assert list(found) == ["layers.0", "layers.2", "layers.10"]
    expected = golden.io("sparsify/multi_hookpoint/layers.10")
    golden.check_latents(found["layers.10"].encode(expected["x"]), expected["latents"])


def test_embeddings_and_layers_stand_as_people_count(tmp_path):
    source = golden.folder("sparsify/topk")
    for name in ("layers.10", "layers.2", "embed_tokens", "layers.0.mlp"):
        shutil.copytree(source, tmp_path / name)
    assert list(load_many(tmp_path)) == ["embed_tokens", "layers.0.mlp", "layers.2", "layers.10"]
    assert list(Sae.load_many(tmp_path)) == sorted(Sae.load_many(tmp_path), key=natural_key)


def test_seeds_and_best_do_not_crash(tmp_path):
    assert list(load_many(golden.folder("sparsify/multi_seed"))) == ["layers.0/seed0", "layers.0/seed1"]
    run = tmp_path / "run"
    shutil.copytree(golden.folder("sparsify/multi_hookpoint"), run)
    shutil.copytree(golden.folder("sparsify/topk"), run / "best" / "layers.0" / "layers.0")
    shutil.copytree(golden.folder("sparsify/topk"), run / "best" / "layers.10" / "layers.10")
    assert list(load_many(run)) == ["layers.0", "layers.2", "layers.10"]
    assert list(load_many(run / "best")) == ["layers.0", "layers.10"]


def test_runs_of_dictionary_learning_and_ours_are_loaded_whole(tmp_path):
    found = load_many(golden.folder("dictionary_learning/run_two_trainers"))
    assert {name: type(d) for name, d in found.items()} == {"trainer_0": BatchTopKSAE, "trainer_1": AutoEncoderTopK}
    for n in (10, 2):
        save_dictionary(AutoEncoder(12, 40), tmp_path / f"trainer_{n}")
    assert list(load_many(tmp_path)) == ["trainer_2", "trainer_10"]
    assert set(load_many(golden.folder("saelens/multi_sae"))) == {"l2_topk", "l10_standard"}


def test_files_beside_each_other_are_sites(tmp_path):
    source = golden.folder("third_party/mwhanna_transcoder")
    for n in (10, 2):
        shutil.copy(source / "layer_5.safetensors", tmp_path / f"layer_{n}.safetensors")
    shutil.copy(source / "config.yaml", tmp_path)
    assert list(load_many(tmp_path)) == ["layer_2", "layer_10"]
    by_site = load_dictionary(tmp_path, site="layer_10")
    assert by_site.info.model == "Qwen/Qwen3-0.6B"
    by_path = load_dictionary(tmp_path / "layer_10.safetensors")
    assert torch.equal(by_site.W_enc, by_path.W_enc)
    with pytest.raises(CheckpointError, match="holds 2 dictionaries: layer_2, layer_10. Say which by site="):
        load_dictionary(tmp_path)


def test_a_folder_with_one_dictionary_below_is_that_one():
    dictionary = load_dictionary(golden.folder("dictionary_learning/backup_interrupted"))
    assert type(dictionary) is BatchTopKSAE


def test_names_that_people_know():
    run = golden.folder("sparsify/multi_hookpoint")
    by_name = Sae.load_from_hub(str(run), hookpoint="layers.2")
    by_path = Sae.load_from_disk(run / "layers.2", device="cpu")
    assert torch.equal(by_name.W_enc, by_path.W_enc)
    assert isinstance(AutoEncoderTopK.from_pretrained(run, site="layers.2"), AutoEncoderTopK)
    assert isinstance(AutoEncoder.from_pretrained(golden.folder("openai/relu")), AutoEncoder)
    assert isinstance(JumpReluAutoEncoder.from_pretrained(golden.folder("gemma_scope/jumprelu")), JumpReluAutoEncoder)
    with pytest.raises(CheckpointError, match="holds a AutoEncoderTopK, not a AutoEncoder"):
        AutoEncoder.from_pretrained(run, site="layers.2")


def test_what_cannot_be_told_apart_is_asked(tmp_path):
    shutil.copy(golden.folder("dictionary_learning/AutoEncoderTopK") / "ae.pt", tmp_path)
    with pytest.raises(CheckpointError, match="of AutoEncoderTopK and of BatchTopKSAE alike"):
        load_dictionary(tmp_path)
    assert type(load_dictionary(tmp_path, dict_class="BatchTopKSAE")) is BatchTopKSAE
    assert type(load_dictionary(tmp_path / "ae.pt", dict_class="AutoEncoderTopK")) is AutoEncoderTopK


def test_keys_decide_where_they_can(tmp_path):
    for name in ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        shutil.copy(golden.folder(f"dictionary_learning/{name}") / "ae.pt", tmp_path)
        assert type(load_dictionary(tmp_path)).__name__ == name


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("third_party/qwen_scope", {}, "Give k=."),
        ("third_party/llama_scope_r1", {}, "Give scale="),
        ("saelens/topk", {"k": 4}, "has no use for k=4"),
        ("saelens/topk", {"format": "sae_lense"}, "Did you mean 'sae_lens'"),
        ("saelens/topk", {"site": "blocks.9"}, "has no site 'blocks.9'"),
        ("saelens", {"format": "sparsify"}, "holds|no sae.safetensors"),
    ],
)
def test_errors_say_what_is_needed(name, arguments, said):
    with pytest.raises(CheckpointError, match=said):
        load_dictionary(golden.folder(name), **arguments)


def test_what_is_no_dictionary_is_listed(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(CheckpointError, match="It holds: notes.txt"):
        load_dictionary(tmp_path)
    with pytest.raises(CheckpointError, match="no dictionary in"):
        load_many(tmp_path)
    with pytest.raises(CheckpointError, match="There is no folder"):
        load_dictionary(tmp_path / "missing")


def test_layouts_of_llama_scope(tmp_path):
    source = golden.folder("third_party/llama_scope")
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(source / "hyperparams.json", tmp_path)
    shutil.copy(source / "final.safetensors", tmp_path / "checkpoints")
    expected = golden.io("third_party/llama_scope")
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "final.safetensors"):
        dictionary = load_dictionary(path)
        golden.check_latents(dictionary.encode(expected["x"]), expected["latents"])


def test_k_is_read_from_the_name_of_the_repository(tmp_path):
    folder = tmp_path / "SAE-Res-W32K-L0_4"
    shutil.copytree(golden.folder("third_party/qwen_scope"), folder)
    assert load_dictionary(folder).k == 4


def test_half_precision_is_computed_in_float32():
    folder = golden.folder("sparsify/topk_bf16")
    assert load_dictionary(folder).dtype == torch.float32
    assert load_dictionary(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_early_saelens_files_are_read_without_their_package(tmp_path, monkeypatch):
    """The settings are an object of a package that is not installed, and is not looked for."""
    module = types.ModuleType("sae_training_of_2024")

    class Config:
        pass

    Config.__module__, Config.__qualname__ = module.__name__, "Config"
    module.Config = Config
    config = Config()
    vars(config).update(
        d_in=16, d_sae=64, hook_point="blocks.8.hook_resid_pre", model_name="gpt2-small", dtype=torch.float32,
        device=torch.device("cpu"), hook_point_layer=8, l1_coefficient=8e-5,
    )  # fmt: skip
    expected = golden.io("saelens_legacy/standard")
    weights = load_dictionary(golden.folder("saelens_legacy/standard"))
    state = {"W_enc": weights.W_enc.T, "b_enc": weights.b_enc, "W_dec": weights.W_dec, "b_dec": weights.b_dec}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        torch.save({"cfg": config, "state_dict": state}, tmp_path / "final_sparse_autoencoder.pt")
    dictionary = load_dictionary(tmp_path)
    golden.check_latents(dictionary.encode(expected["x"]), expected["latents"])
    assert dictionary.info.model == "gpt2-small" and dictionary.info.sites == ("blocks.8.hook_resid_pre",)
    assert module.__name__ not in sys.modules
    assert isinstance(read_pt(tmp_path / "final_sparse_autoencoder.pt")["cfg"], Inert)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("sparsify/topk", {"trainer": "top_k"}),
        ("saelens/jumprelu", {"trainer": "jump_relu", "sparsity_penalty": 1.0}),
        ("gemma_scope/jumprelu", {"trainer": "jump_relu", "sparsity_penalty": 1.0}),
        ("dictionary_learning/BatchTopKSAE_threshold", {"trainer": "batch_top_k", "k": 4}),
        ("openai/relu", {"trainer": "top_k", "k": 4}),
        ("third_party/mwhanna_transcoder", {"trainer": "standard", "wiring": "transcoder"}),
    ],
)
def test_any_format_is_trained_further(name, config):
    dictionary = load_dictionary(golden.folder(name))
    data = list(tiny.Planted(dim=16).batches(3, 32))
    if "wiring" in config:
        data = [{"m.0:in": x, "m.0:out": x.roll(1, dims=1)} for x in data]
    (trained,) = trainSAE(data, {**config, "finetune": str(golden.folder(name)), "dict_size": 128}, 3, progress=False)
    assert trained.dict_size == 128 and trained.W_dec.isfinite().all()
    torch.testing.assert_close(trained.W_dec[:4], dictionary.W_dec[:4], atol=0.5, rtol=0.5)


@pytest.mark.parametrize(
    "name", ["openai/topk", "saelens/standard_layer_norm", "saelens/standard_constant_norm_rescale"]
)
def test_dictionary_that_normalizes_tokens_is_trained_further(name):
    place = golden.folder(name)
    dictionary = load_dictionary(place)
    assert isinstance(dictionary, Normalized)
    x = tiny.Planted(dim=16).batch(64) * 3 + 1
    trainer = {"trainer": "top_k", "k": 4} if "topk" in name else {"trainer": "standard", "sparsity_penalty": 0.0}
    (same,) = trainSAE(
        [x], {**trainer, "finetune": str(place), "lr": 1e-12, "unit_norm_decoder": False}, 1, progress=False
    )
    assert isinstance(same, Normalized)
    torch.testing.assert_close(same(x), dictionary(x), atol=2e-3, rtol=2e-3)
    with pytest.raises(ConfigError, match="was trained with"):
        trainSAE([x], {**trainer, "finetune": str(place), "normalize": "sqrt_dim"}, 1, progress=False)


def test_facts_that_the_file_contradicts_are_refused(tmp_path):
    torch.manual_seed(0)
    write_dictionary(AutoEncoderTopK(8, 16, 4), tmp_path, "dictionary_learning")
    with pytest.raises(CheckpointError, match="Got k=2, and .* says k=4"):
        AutoEncoderTopK.from_pretrained(tmp_path / "ae.pt", k=2)
    with pytest.raises(CheckpointError, match="says dict_class='AutoEncoderTopK'"):
        load_dictionary(tmp_path, dict_class="BatchTopKSAE")
    assert AutoEncoderTopK.from_pretrained(tmp_path, k=4).k == 4


def test_arguments_by_position_are_those_of_dictionary_learning(tmp_path):
    write_dictionary(AutoEncoderTopK(8, 16, 4), tmp_path, "dictionary_learning")
    assert AutoEncoderTopK.from_pretrained(tmp_path, None, "cpu").k == 4
    assert AutoEncoderTopK.from_pretrained(tmp_path, 4, "cpu").k == 4
    assert AutoEncoderTopK.from_pretrained(tmp_path, torch.float64, "cpu").dtype == torch.float64
    with pytest.raises(ConfigError, match="name the arguments"):
        AutoEncoderTopK.from_pretrained(tmp_path, "cpu", 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1500, 700), (700, 1501), (3, 400_000)])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_matrices_that_lie_by_columns_are_copied_whole(dtype, size, n_threads, monkeypatch):
    from dictionary_learning.interop import _tensors

    before = torch.get_num_threads()
    monkeypatch.setattr(_tensors, "_LARGE", 1)
    matrix = torch.randn(size).to(dtype)
    try:
        torch.set_num_threads(n_threads)
        for given in (matrix.T, matrix, matrix[:, 1:], matrix[0]):
            copy = _tensors._copied(given)
            assert torch.equal(copy, given) and copy.is_contiguous() and copy.data_ptr() != given.data_ptr()
    finally:
        torch.set_num_threads(before)
