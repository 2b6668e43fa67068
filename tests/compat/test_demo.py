"""The official demo of dictionary-learning 0.1 in small: its functions, keys and trainers."""

import json
from pathlib import Path

import pytest
import torch as t
from transformers import AutoModelForCausalLM

from dictionary_learning import utils
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.evaluation import evaluate
from dictionary_learning.pytorch_buffer import ActivationBuffer, collect_activations
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE, MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.p_anneal import PAnnealTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from tests import tiny

STEPS, LAYER = 6, 1
L1 = {"l1_penalty": 0.06, "sparsity_warmup_steps": 2}
KEPT = {"k": 4, "auxk_alpha": 1 / 32, "threshold_beta": 0.999, "threshold_start_step": 2}
TRAINERS = [
    (StandardTrainer, AutoEncoder, {**L1, "resample_steps": None}),
    (StandardTrainerAprilUpdate, AutoEncoder, L1),
    (GatedSAETrainer, GatedAutoEncoder, L1),
    (PAnnealTrainer, AutoEncoder, {
        "initial_sparsity_penalty": 0.06, "sparsity_warmup_steps": 2, "sparsity_function": "Lp^p", "p_start": 1.0,
        "p_end": 0.2, "anneal_start": 3, "anneal_end": None, "sparsity_queue_length": 10, "n_sparsity_updates": 10,
    }),
    (TopKTrainer, AutoEncoderTopK, KEPT),
    (BatchTopKTrainer, BatchTopKSAE, KEPT),
    (MatryoshkaBatchTopKTrainer, MatryoshkaBatchTopKSAE, {
        **KEPT, "group_fractions": [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2 + 1 / 32], "group_weights": None,
    }),
    (JumpReluTrainer, JumpReluAutoEncoder, {
        "target_l0": 4, "sparsity_warmup_steps": 2, "sparsity_penalty": 1.0, "bandwidth": 0.001,
    }),
]  # fmt: skip


@pytest.fixture
def model(tmp_path):
    tiny.save_model(tmp_path / "model")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_eight_trainers_train_load_and_are_evaluated(model, tmp_path):
    submodule = utils.get_submodule(model, LAYER)
    assert submodule is model.model.layers[LAYER]
    ids = t.randint(3, tiny.VOCAB, (2, 8))
    assert t.equal(
        collect_activations(model, submodule, {"input_ids": ids}),
        model(ids, output_hidden_states=True).hidden_states[2],
    )
    activation_buffer = ActivationBuffer(
        iter(tiny.documents(300, seed=2)), model, submodule, n_ctxs=16, ctx_len=16, refresh_batch_size=4,
        out_batch_size=32, io="out", d_submodule=tiny.DIM, device="cpu", add_special_tokens=True,
    )  # fmt: skip
    common = {
        "activation_dim": tiny.DIM, "device": "cpu", "layer": LAYER, "lm_name": "tiny", "submodule_name": f"resid_post_layer_{LAYER}",
        "warmup_steps": 2, "steps": STEPS, "decay_start": 4, "dict_size": 64, "seed": 0, "lr": 3e-4,
    }  # fmt: skip
    trainer_configs = [
        {**common, "trainer": trainer, "dict_class": cls, "wandb_name": f"{trainer.__name__}-tiny", **own}
        for trainer, cls, own in TRAINERS
    ]
    save_dir = str(tmp_path / "run")
    trainSAE(
        data=activation_buffer, trainer_configs=trainer_configs, use_wandb=False, steps=STEPS, save_steps=[0, 3],
        save_dir=save_dir, log_steps=2, wandb_project="demo", normalize_activations=True, verbose=False,
        autocast_dtype=t.bfloat16, backup_steps=1000, save_format="dictionary_learning", progress=False, device="cpu",
    )  # fmt: skip
    ae_paths = sorted(utils.get_nested_folders(save_dir))
    assert len(ae_paths) == 8
    for path, (trainer, cls, _) in zip(ae_paths, TRAINERS, strict=True):
        dictionary, config = utils.load_dictionary(path, "cpu")
        assert config["trainer"]["dict_class"] == cls.__name__ and config["trainer"]["layer"] == LAYER
        name = {"TrainerTopK": "TopKTrainer", "TrainerStandard": "StandardTrainer"}.get(
            trainer.__name__, trainer.__name__
        )
        assert json.loads(Path(path, "config.json").read_text())["trainer"]["trainer_class"] == name
        assert {"ae_0.pt", "ae_3.pt"} <= {one.name for one in (tmp_path / "run").rglob("ae_*.pt")}
        held_out = ActivationBuffer(
            iter(tiny.documents(60, seed=3)), model, submodule, n_ctxs=8, ctx_len=16, refresh_batch_size=4,
            out_batch_size=16, io="out", d_submodule=tiny.DIM, device="cpu",
        )  # fmt: skip
        results = evaluate(dictionary.to(dtype=model.dtype), held_out, 16, 4, io="out", device="cpu")
        assert {"l2_loss", "l0", "frac_variance_explained", "loss_original", "frac_recovered", "frac_alive"} <= set(
            results
        )


def test_truncated_model_has_the_blocks_up_to_a_layer(model):
    ids = t.randint(3, tiny.VOCAB, (2, 8))
    expected = collect_activations(model, utils.get_submodule(model, LAYER), {"input_ids": ids})
    short = utils.truncate_model(model, LAYER)
    assert len(short.model.layers) == LAYER + 1 and type(short.lm_head) is t.nn.Identity
    assert t.equal(collect_activations(short, utils.get_submodule(short, LAYER), {"input_ids": ids}), expected)


def test_readme_example(model):
    """The README's buffer and trainer config, with this model's name."""
    buffer = ActivationBuffer(
        data=iter(tiny.documents(200, seed=4)), model=model, submodule=model.model.layers[1].mlp, d_submodule=tiny.DIM,
        n_ctxs=16, device="cpu", ctx_len=16, out_batch_size=32, refresh_batch_size=4,
    )  # fmt: skip
    trainer_cfg = {
        "trainer": StandardTrainer, "dict_class": AutoEncoder, "activation_dim": tiny.DIM, "dict_size": 16 * tiny.DIM,
        "lr": 1e-3, "device": "cpu", "steps": 4, "layer": 1, "lm_name": "tiny", "warmup_steps": 1,
        "sparsity_warmup_steps": 1,
    }  # fmt: skip
    (ae,) = trainSAE(data=buffer, trainer_configs=[trainer_cfg], steps=4, progress=False, device="cpu")
    activations = t.randn(64, tiny.DIM)
    features = ae.encode(activations)
    reconstructed = ae.decode(features)
    x_hat, f = ae(activations, output_features=True)
    t.testing.assert_close(x_hat, reconstructed)
    t.testing.assert_close(f, features)
    assert isinstance(ae, AutoEncoder) and AutoEncoderNew
    assert (buffer.d_submodule, buffer.remove_bos, buffer.add_special_tokens) == (tiny.DIM, True, True)
    batch = buffer.tokenized_batch(2)
    assert batch["input_ids"].shape == batch["attention_mask"].shape and len(buffer.text_batch(3)) == 3
    with pytest.raises(AttributeError, match=r"migrating\.md"):
        _ = buffer.activations
