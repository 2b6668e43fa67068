"""Cells of the tutorials of SAELens and mats_sae_training: imports and the model's name are other."""

import json
import math

import pytest
import torch
from datasets import Dataset

from dictionary_learning import load_dictionary, load_model
from dictionary_learning.compat.sae_training.config import LanguageModelSAERunnerConfig as MatsConfig
from dictionary_learning.compat.sae_training.lm_runner import language_model_sae_runner
from dictionary_learning.compat.sae_training.utils import LMSparseAutoencoderSessionloader
from dictionary_learning.compat.saelens import (
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
    LoggingConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    SAETrainingRunner,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)
from dictionary_learning.compat.saelens._hooks import site_of_hook
from dictionary_learning.compat.saelens._translation import check_fields, save_steps, steps_of, trainer_config
from dictionary_learning.compat.saelens.runner import buffer_of
from dictionary_learning.errors import ConfigError, ModelError, SiteError, UnknownNameError
from tests import tiny

STEPS, BATCH = 8, 64


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saelens")
    tiny.model("gpt2").save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    Dataset.from_dict({"text": tiny.documents(200, seed=5)}).save_to_disk(str(folder / "data"))
    return folder


def tutorial(places, tmp_path, **changes):
    """The training cell of the tutorial of SAELens 3, in small."""
    total_training_steps = STEPS
    batch_size = BATCH
    total_training_tokens = total_training_steps * batch_size
    lr_warm_up_steps = 0
    lr_decay_steps = total_training_steps // 5
    l1_warm_up_steps = total_training_steps // 20
    return LanguageModelSAERunnerConfig(**{
        "model_name": str(places / "model"), "hook_name": "blocks.0.hook_mlp_out", "hook_layer": 0, "d_in": tiny.DIM,
        "dataset_path": str(places / "data"), "is_dataset_tokenized": True, "streaming": True,
        "mse_loss_normalization": None, "expansion_factor": 16, "b_dec_init_method": "zeros",
        "apply_b_dec_to_input": False, "normalize_sae_decoder": False,
        "scale_sparsity_penalty_by_decoder_norm": True, "decoder_heuristic_init": True,
        "init_encoder_as_decoder_transpose": True, "normalize_activations": "expected_average_only_in", "lr": 5e-5,
        "adam_beta1": 0.9, "adam_beta2": 0.999, "lr_scheduler_name": "constant", "lr_warm_up_steps": lr_warm_up_steps,
        "lr_decay_steps": lr_decay_steps, "l1_coefficient": 5, "l1_warm_up_steps": l1_warm_up_steps, "lp_norm": 1.0,
        "train_batch_size_tokens": batch_size, "context_size": 16, "n_batches_in_buffer": 4,
        "training_tokens": total_training_tokens, "store_batch_size_prompts": 4, "use_ghost_grads": False,
        "feature_sampling_window": 1000, "dead_feature_window": 1000, "dead_feature_threshold": 1e-4,
        "log_to_wandb": False, "wandb_project": "sae_lens_tutorial", "wandb_log_frequency": 2,
        "eval_every_n_wandb_logs": 2, "device": "cpu", "seed": 42, "n_checkpoints": 2,
        "checkpoint_path": str(tmp_path / "checkpoints"), "dtype": "float32", **changes,
    })  # fmt: skip


def test_training_cell_of_the_tutorial(places, tmp_path):
    cfg = tutorial(places, tmp_path)
    sparse_autoencoder = SAETrainingRunner(cfg).run()
    (run,) = (tmp_path / "checkpoints").iterdir()
    said = json.loads((run / "trainer_0" / "cfg.json").read_text())
    assert said["architecture"] == "standard" and said["d_sae"] == 16 * tiny.DIM
    assert said["metadata"]["hook_name"] == "blocks.0.hook_mlp_out"
    assert (run / "trainer_0" / "checkpoints" / "step_4" / "cfg.json").is_file()
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == STEPS
    x = torch.randn(5, tiny.DIM)
    torch.testing.assert_close(load_dictionary(run / "trainer_0")(x), sparse_autoencoder(x), atol=1e-5, rtol=1e-4)
    session = LMSparseAutoencoderSessionloader.load_session_from_pretrained(
        str(run / "trainer_0"), override_dataset=tiny.documents(40)
    )
    model, sae, activations_loader = session
    assert next(activations_loader).shape == (activations_loader.out_batch_size, tiny.DIM)
    assert str(activations_loader.sites[0]) == "transformer.h.0.mlp:out" and sae.dict_size == 16 * tiny.DIM
    assert model.name.endswith("model")


def test_every_field_has_its_unit(places, tmp_path):
    cfg = tutorial(places, tmp_path)
    check_fields(cfg)
    config = trainer_config(cfg, tiny.DIM, "transformer.h.0.mlp:out")
    assert type(config).__qualname__ == "TrainerStandard.Config" and steps_of(cfg) == STEPS
    # windows are of steps there, of tokens here
    assert (config.dead_feature_threshold, config.feature_sampling_window) == (1000 * BATCH, 1000 * BATCH)
    assert config.dead_after_tokens == 1000 * BATCH and config.min_frequency is None
    assert (config.schedule, config.warmup_steps, config.decay_start) == ("linear", 0, STEPS - STEPS // 5)
    assert (config.sparsity_penalty, config.sparsity_warmup_steps, config.lr) == (5.0, 0, 5e-5)
    assert (config.beta1, config.decoder_init_norm, config.unit_norm_decoder) == (0.9, 0.1, False)
    assert config.scale_sparsity_penalty_by_decoder_norm and config.apply_b_dec_to_input is False
    assert config.dict_size == 256 and config.b_dec_init_method == "zeros"
    assert config.normalize == "expected_average_only_in" and save_steps(cfg) == [4]
    assert save_steps(tutorial(places, tmp_path, n_checkpoints=0)) == []
    model = load_model(str(places / "model"))
    buffer = buffer_of(cfg, model, site_of_hook(model, cfg.hook_name), tiny.documents(60))
    assert (buffer.n_ctxs, buffer.ctx_len, buffer.out_batch_size) == (4 * 4, 16, BATCH)  # batches of prompts
    assert (
        buffer.refresh_batch_size == 4 and buffer.filter.max_norm_multiple is None and not buffer.filter.exclude_first
    )


def test_mats_cell_and_session(places, tmp_path):
    cfg = MatsConfig(
        model_name=str(places / "model"), hook_point="blocks.1.hook_resid_pre", hook_point_layer=1, d_in=tiny.DIM,
        dataset_path=str(places / "data"), is_dataset_tokenized=False, b_dec_init_method="geometric_median", expansion_factor=4,
        lr=4e-4, l1_coefficient=0.00008, lr_scheduler_name="constantwithwarmup", train_batch_size=BATCH,
        context_size=16, lr_warm_up_steps=2, n_batches_in_buffer=8, total_training_tokens=STEPS * BATCH,
        store_batch_size=4, use_ghost_grads=True, feature_sampling_method=None, feature_sampling_window=1000,
        dead_feature_window=5000, dead_feature_threshold=1e-6, log_to_wandb=False, wandb_project="mats",
        wandb_entity=None, wandb_log_frequency=4, device="cpu", seed=42, n_checkpoints=0,
        checkpoint_path=str(tmp_path / "checkpoints"), dtype=torch.float32,
    )  # fmt: skip
    config = trainer_config(cfg, tiny.DIM, "transformer.h.0:out")
    # errors are means over dimensions there, sums here
    assert (
        config.sparsity_penalty == pytest.approx(0.00008 * tiny.DIM) and config.mse_loss_normalization == "dense_batch"
    )
    assert (config.schedule, config.warmup_steps, config.use_ghost_grads) == ("constant", 2, True)
    assert config.dead_after_tokens == 5000 * BATCH and config.unit_norm_decoder
    sae = language_model_sae_runner(cfg)
    assert sae.dict_size == 4 * tiny.DIM and sae.W_dec.norm(dim=1).sub(1).abs().max() < 1e-4
    (run,) = (tmp_path / "checkpoints").iterdir()
    model, loaded, loader = LMSparseAutoencoderSessionloader.load_session_from_pretrained(
        str(run / "trainer_0"), override_dataset=tiny.documents(40)
    )
    x = next(loader)
    torch.testing.assert_close(loaded(x), sae(x), atol=1e-5, rtol=1e-4)
    assert model.layers() is not None


CODERS = {
    "standard": StandardTrainingSAEConfig(d_in=tiny.DIM, d_sae=64, l1_coefficient=2.0, l1_warm_up_steps=3),
    "gated": GatedTrainingSAEConfig(d_in=tiny.DIM, d_sae=64, l1_coefficient=2.0),
    "topk": TopKTrainingSAEConfig(d_in=tiny.DIM, d_sae=64, k=5),
    "batchtopk": BatchTopKTrainingSAEConfig(d_in=tiny.DIM, d_sae=64, k=5),
    "matryoshka": MatryoshkaBatchTopKTrainingSAEConfig(d_in=tiny.DIM, d_sae=64, k=5, matryoshka_widths=[16, 32]),
    "jumprelu": JumpReLUTrainingSAEConfig(
        d_in=tiny.DIM, d_sae=64, l0_coefficient=0.5, jumprelu_sparsity_loss_mode="tanh"
    ),
}


@pytest.mark.parametrize("kind", CODERS)
def test_nested_configs_of_version_6(places, tmp_path, kind):
    cfg = LanguageModelSAERunnerConfig(
        sae=CODERS[kind], model_name=str(places / "model"), hook_name="blocks.1.hook_resid_post", training_tokens=4 * BATCH,
        dataset_path=str(places / "data"), context_size=16, train_batch_size_tokens=BATCH, n_batches_in_buffer=4,
        store_batch_size_prompts=4, lr_warm_up_steps=1, logger=LoggingConfig(log_to_wandb=False, wandb_log_frequency=1),
        checkpoint_path=str(tmp_path / "c"), output_path=str(tmp_path / "out"), lr=3e-4,
    )  # fmt: skip
    sae = SAETrainingRunner(cfg, override_dataset=tiny.documents(100)).run()
    assert sae.dict_size == 64 and (tmp_path / "out" / "cfg.json").is_file()
    config = trainer_config(cfg, tiny.DIM, "transformer.h.1:out")
    if kind == "matryoshka":
        assert config.group_fractions == (0.25, 0.25, 0.5)
    if kind == "jumprelu":
        assert (config.sparsity_function, config.bandwidth, config.sparsity_penalty) == ("tanh", 0.05, 0.5)
    if kind == "standard":
        assert config.scale_sparsity_penalty_by_decoder_norm and config.sparsity_warmup_steps == 3


@pytest.mark.parametrize(("hook", "site"), [
    ("blocks.1.hook_resid_post", "transformer.h.1:out"), ("blocks.1.hook_resid_pre", "transformer.h.1:in"),
    ("blocks.1.hook_mlp_out", "transformer.h.1.mlp:out"), ("blocks.1.hook_attn_out", "transformer.h.1.attn:out"),
    ("blocks.1.hook_resid_mid", "transformer.h.1.ln_2:in"), ("transformer.h.1.mlp", "transformer.h.1.mlp:out"),
])  # fmt: skip
def test_hooks_of_transformer_lens(hook, site):
    model = load_model(tiny.model("gpt2"), tokenizer=tiny.tokenizer())
    assert str(site_of_hook(model, hook)) == site
    for wrong in ("blocks.9.hook_resid_post", "blocks.0.ln1.hook_scale", "nothing"):
        with pytest.raises(SiteError):
            site_of_hook(model, wrong)


def test_schedules(places, tmp_path):
    def of(**changes):
        return trainer_config(tutorial(places, tmp_path, lr_decay_steps=0, **changes), tiny.DIM, "x:out")

    assert of(lr_scheduler_name="cosineannealing").schedule == "cosine"
    assert of(lr_scheduler_name="cosineannealingwarmrestarts", n_restart_cycles=4).schedule == "cosine_restarts"
    half = of(lr_scheduler_name="cosineannealing").learning_rate_schedule(STEPS)
    # as torch's CosineAnnealingLR, which ends at lr / 10
    assert half(STEPS // 2) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    with pytest.raises(ConfigError, match="lr_end"):
        of(lr_scheduler_name="cosineannealing", lr_end=1e-6)
    with pytest.raises(ConfigError, match="lr_scheduler_name"):
        of(lr_scheduler_name="step")


@pytest.mark.parametrize(("changes", "word"), [
    ({"hook_head_index": 3}, "heads"), ({"use_cached_activations": True}, "ActivationCache"),
    ({"resume": True}, "resume="), ({"finetuning_tokens": 5}, "from_pretrained_path"), ({"noise_scale": 0.1}, "noise"),
    ({"dtype": "bfloat16"}, "autocast"), ({"activations_mixing_fraction": 0.2}, "buffer"),
])  # fmt: skip
def test_what_cannot_be_translated_says_what_to_use(places, tmp_path, changes, word):
    with pytest.raises(ConfigError, match=word):
        check_fields(tutorial(places, tmp_path, **changes))


def test_wrong_fields(places, tmp_path, caplog):
    with pytest.raises(UnknownNameError, match="l1_coefficient"):
        LanguageModelSAERunnerConfig(l1_coeficient=3)
    with pytest.raises(ConfigError, match="twice"):
        LanguageModelSAERunnerConfig(hook_point="blocks.0.hook_mlp_out", hook_name="blocks.1.hook_mlp_out")
    with pytest.raises(ConfigError, match="d_in=1024"):
        trainer_config(tutorial(places, tmp_path, d_in=1024), tiny.DIM, "x:out")
    with pytest.raises(ModelError, match="TransformerLens"):
        SAETrainingRunner(tutorial(places, tmp_path, model_name="gelu-2l"))
    with pytest.raises(ConfigError, match="hook_layer=2"):
        SAETrainingRunner(tutorial(places, tmp_path, hook_layer=2))
    check_fields(tutorial(places, tmp_path, compile_llm=True))
    assert "compile_llm=True has no effect" in caplog.text
    assert tutorial(places, tmp_path).lp_norm == 1.0
    with pytest.raises(AttributeError):
        _ = tutorial(places, tmp_path).nothing
