"""Cells of the tutorials of SAELens and mats_sae_training: imports and the model's name are other."""

import copy
import json
import math

import pytest
import torch
from datasets import Dataset

from dictionary_learning import ActivationBuffer, load_dictionary, load_model, trainSAE
from dictionary_learning.compat.sae_training.config import LanguageModelSAERunnerConfig as MatsConfig
from dictionary_learning.compat.sae_training.lm_runner import language_model_sae_runner
from dictionary_learning.compat.sae_training.utils import LMSparseAutoencoderSessionloader
from dictionary_learning.compat.saelens import (
    SAE,
    AbsTopKTrainingSAEConfig,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
    LoggingConfig,
    MatchingPursuitTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    SAETrainingRunner,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    _fields,
    config as config_module,
    runner as runner_module,
)
from dictionary_learning.compat.saelens._hooks import site_of_hook
from dictionary_learning.compat.saelens._translation import check_fields, save_steps, steps_of, trainer_config
from dictionary_learning.compat.saelens.runner import _plain, buffer_of
from dictionary_learning.data import TokenStream, as_source
from dictionary_learning.dictionaries import IdentityDict
from dictionary_learning.errors import ConfigError, ModelError, SiteError, UnknownNameError
from dictionary_learning.interop import convert
from dictionary_learning.parallel._ranks import Alone
from dictionary_learning.trainers import TrainerTopK
from tests import tiny

STEPS, BATCH = 8, 64


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saelens")
    tiny.save_model(folder / "model", "gpt2")
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


def test_without_a_folder_nothing_is_saved(places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sae = SAETrainingRunner(tutorial(places, tmp_path, checkpoint_path=None, n_checkpoints=0)).run()
    assert sae.cfg.d_in == tiny.DIM
    assert not list(tmp_path.rglob("*.safetensors"))


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


SIZES = {"d_in": tiny.DIM, "d_sae": 64, "device": "cpu"}
WEIGHTED = {"scale_sparsity_penalty_by_decoder_norm": True, "sparsity_penalty": 2.0}
KEPT = {"k": 5, "auxk_alpha": 0.5, "decoder_lr_factor": 1.0}
AVERAGED = {"threshold_beta": 0.75, "threshold_start_step": 0}
TOP_K = {"k": 5, "aux_loss_coefficient": 0.5}
CODERS = {
    "standard": (
        StandardTrainingSAEConfig(**SIZES, l1_coefficient=2.0, l1_warm_up_steps=3),
        "Standard", {**WEIGHTED, "sparsity_warmup_steps": 3, "apply_b_dec_to_input": True},
    ),
    "lp": (StandardTrainingSAEConfig(**SIZES, l1_coefficient=2.0, lp_norm=0.5), "Standard", {**WEIGHTED, "lp_norm": 0.5}),
    "gated": (
        GatedTrainingSAEConfig(**SIZES, l1_coefficient=2.0, l1_warm_up_steps=2),
        "Gated", {**WEIGHTED, "sparsity_warmup_steps": 2},
    ),
    "topk": (TopKTrainingSAEConfig(**SIZES, **TOP_K), "TopK", {**KEPT, "rank_by_norm": True}),
    "abstopk": (
        AbsTopKTrainingSAEConfig(**SIZES, **TOP_K, rescale_acts_by_decoder_norm=False),
        "AbsTopK", {**KEPT, "rank_by_norm": False},
    ),
    "batchtopk": (
        BatchTopKTrainingSAEConfig(**SIZES, **TOP_K, topk_threshold_lr=0.25), "BatchTopK", {**KEPT, **AVERAGED},
    ),
    "matryoshka": (
        MatryoshkaBatchTopKTrainingSAEConfig(**SIZES, **TOP_K, topk_threshold_lr=0.25, matryoshka_widths=[16, 32]),
        "Matryoshka", {**KEPT, **AVERAGED, "group_fractions": (0.25, 0.25, 0.5), "group_weights": (1.0, 1.0, 1.0)},
    ),
    "jumprelu": (
        JumpReLUTrainingSAEConfig(**SIZES, l0_coefficient=0.5, jumprelu_sparsity_loss_mode="tanh"),
        "JumpRelu", {"sparsity_function": "tanh", "bandwidth": 0.05, "sparsity_penalty": 0.5, "tanh_scale": 4.0},
    ),
    "jumprelu_quadratic": (
        JumpReLUTrainingSAEConfig(**SIZES, jumprelu_sparsity_loss_mode="quadratic", target_l0=7.0),
        "JumpRelu", {"sparsity_function": "quadratic_l0", "target_l0": 7.0},
    ),
    "matching_pursuit": (
        MatchingPursuitTrainingSAEConfig(**SIZES, max_iterations=5), "MatchingPursuit", {"k": 5, "dict_size": 64},
    ),
}  # fmt: skip


def nested(places, tmp_path, coder, **changes):
    return LanguageModelSAERunnerConfig(**{
        "sae": coder, "model_name": str(places / "model"), "hook_name": "blocks.1.hook_resid_post",
        "training_tokens": 4 * BATCH, "dataset_path": str(places / "data"), "context_size": 16,
        "train_batch_size_tokens": BATCH, "n_batches_in_buffer": 4, "store_batch_size_prompts": 4,
        "lr_warm_up_steps": 1, "logger": LoggingConfig(log_to_wandb=False, wandb_log_frequency=1),
        "checkpoint_path": str(tmp_path / "c"), "output_path": str(tmp_path / "out"), "lr": 3e-4, **changes,
    })  # fmt: skip


@pytest.mark.parametrize("kind", CODERS)
def test_nested_configs_of_version_6(places, tmp_path, kind):
    coder, method, expected = CODERS[kind]
    cfg = nested(places, tmp_path, coder)
    config = trainer_config(cfg, tiny.DIM, "transformer.h.1:out")
    assert method in type(config).__qualname__
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.lr == 3e-4 and config.warmup_steps == 1 and config.decoder_init_norm == 0.1
    sae = SAETrainingRunner(cfg, override_dataset=tiny.documents(100)).run()
    assert sae.dict_size == 64
    # the file has the values of SAELens, which are multiplied by decoder norms where latents are ranked by them
    written, x = load_dictionary(tmp_path / "out"), 3 * torch.randn(9, tiny.DIM)
    if kind == "matching_pursuit":  # which may stop early in SAELens
        assert written.nonlinearity.options() == {
            "k": 5, "residual_threshold": 0.01, "stop_on_duplicate_support": True
        }  # fmt: skip
        torch.testing.assert_close(written.W_dec, sae.W_dec)
        torch.testing.assert_close(written.b_dec, sae.b_dec)
    else:
        torch.testing.assert_close(written(x), sae(x), atol=1e-5, rtol=1e-4)
    l0 = (written.encode(x) != 0).sum(-1)
    assert (l0 <= 5).all() if kind in ("topk", "abstopk", "matching_pursuit") else l0.max() > 0


def test_every_field_is_read_or_refused_or_said_to_have_no_effect(places, tmp_path, monkeypatch):
    read, lookup = set(), config_module.Fields.__getattr__

    def recorded(self, name):
        read.add((type(self), name))
        return lookup(self, name)

    monkeypatch.setattr(config_module.Fields, "__getattr__", recorded)
    monkeypatch.setattr(runner_module, "trainSAE", lambda *data, **options: (IdentityDict(),))
    model = load_model(str(places / "model"))
    monkeypatch.setattr(runner_module, "load_model", lambda *name, **options: model)
    flat = {"eval_every_n_wandb_logs": 1, "n_checkpoints": 1, "mse_loss_normalization": None}
    runs = [nested(places, tmp_path, coder, output_path=None) for coder, _, _ in CODERS.values()]
    runs += [
        tutorial(places, tmp_path, **flat, **changes)
        for changes in (
            {"decoder_heuristic_init": False}, {"architecture": "gated"}, {"architecture": "jumprelu"},
            {"activation_fn": "topk", "activation_fn_kwargs": {"k": 4}},
            {"lr_scheduler_name": "cosineannealingwarmrestarts", "lr_decay_steps": 0},
        )
    ]  # fmt: skip
    kinds = {}
    for cfg in runs:
        SAETrainingRunner(cfg).run()
        parts = (cfg, cfg.sae, cfg.logger) if cfg.is_nested else (cfg,)
        kinds |= {(type(part), cfg.is_nested): part.known() for part in parts}
    told = {*_fields.REFUSED, *_fields.IGNORED, *_fields.HARMLESS}
    for (kind, is_nested), known in kinds.items():
        # what the log is has its own config there, unless there is none
        elsewhere = set(LoggingConfig.defaults) if is_nested and kind is LanguageModelSAERunnerConfig else set()
        missing = [name for name in known if (kind, name) not in read and name not in told | elsewhere]
        assert not missing, (kind, missing)
    assert not {*_fields.HARMLESS} & {*_fields.REFUSED, *_fields.IGNORED}


def test_fields_may_be_set_after_the_config_was_made(places, tmp_path):
    cfg = tutorial(places, tmp_path)
    cfg.train_batch_size, cfg.l1_coefficient = 32, 7  # the first by its older name
    assert (cfg.train_batch_size_tokens, cfg.to_dict()["train_batch_size_tokens"]) == (32, 32)
    assert trainer_config(cfg, tiny.DIM, "x:out").sparsity_penalty == 7 and steps_of(cfg) == STEPS * BATCH // 32
    assert _plain(cfg)["l1_coefficient"] == 7
    with pytest.raises(UnknownNameError, match="l1_coefficient"):
        cfg.l1_coeficient = 3
    with pytest.raises(UnknownNameError):
        cfg.is_nested = True
    cfg.noise_scale = 0.1
    with pytest.raises(ConfigError, match="noise"):
        check_fields(cfg)
    again = copy.deepcopy(cfg)
    again.noise_scale = 0.0
    assert cfg.noise_scale == 0.1 and again.to_dict()["noise_scale"] == 0.0
    of_6 = nested(places, tmp_path, TopKTrainingSAEConfig(**SIZES, k=5))
    of_6.sae.k = 6
    assert trainer_config(of_6, tiny.DIM, "x:out").k == 6
    for name, value in (("sae", cfg), ("sae", None), ("logger", {"log_to_wandb": False})):
        with pytest.raises(ConfigError, match=f"Got {name}="):
            setattr(of_6, name, value)
        with pytest.raises(ConfigError, match=f"Got {name}="):
            nested(places, tmp_path, TopKTrainingSAEConfig(k=5), **{name: value})


def test_evaluations_in_training_leave_out_what_takes_long(places, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(runner_module, "trainSAE", lambda *data, **options: given.update(options) or (IdentityDict(),))
    SAETrainingRunner(tutorial(places, tmp_path, eval_batch_size_prompts=3, n_eval_batches=2)).run()
    asked = given["evaluation"]
    assert (asked.n_resamples, asked.n_geometry_latents, asked.breakdown, asked.together) == (0, 0, False, False)
    assert (asked.batch_size, asked.n_tokens, asked.ctx_len) == (3, 2 * 3 * 16, 16)


def test_a_session_reads_only_what_a_runner_wrote(places, tmp_path):
    coder = StandardTrainingSAEConfig(**SIZES)
    cfg = nested(places, tmp_path, coder, context_size=12)
    SAETrainingRunner(cfg, override_dataset=tiny.documents(60)).run()
    (run,) = (tmp_path / "c").iterdir()
    load = LMSparseAutoencoderSessionloader.load_session_from_pretrained
    _, _, activations = load(str(run / "trainer_0"), override_dataset=tiny.documents(40))
    assert (activations.ctx_len, activations.out_batch_size) == (12, BATCH)
    for other in ({"data": {"sae_lens": {"context_size": 5}}}, {"arguments": []}, {"arguments": {"run_cfg": None}}):
        (run / "run.json").write_text(json.dumps(other))
        model = load_model(str(places / "model"))
        _, _, activations = load(str(run / "trainer_0"), tiny.documents(40), override_model=model)
        # of the dictionary's own files; of the run, the default
        assert (activations.ctx_len, activations.out_batch_size) == (12, 4096)


class SecondOfTwo(Alone):
    rank, size = 1, 2

    def share(self, value, source=0):
        return "of_the_first" if isinstance(value, str) else None


def test_several_processes_have_one_folder_and_each_its_device(places, tmp_path, monkeypatch):
    order, given = [], {}

    def start():
        order.append("start")
        return SecondOfTwo()

    def load(*arguments, **options):
        order.append("load")
        return load_model(*arguments, **options)

    monkeypatch.setattr(runner_module.parallel, "start", start)
    monkeypatch.setattr(runner_module, "load_model", load)
    monkeypatch.setattr(runner_module, "trainSAE", lambda *data, **options: given.update(options) or (IdentityDict(),))
    SAETrainingRunner(nested(places, tmp_path, TopKTrainingSAEConfig(**SIZES, k=5))).run()
    assert order[:2] == ["start", "load"]  # which chooses the device that the model is loaded on
    assert given["save_dir"] == tmp_path / "c" / "of_the_first"
    assert not (tmp_path / "out").exists()  # the first one writes it


@pytest.mark.parametrize(("hook", "site"), [
    ("blocks.1.hook_resid_post", "transformer.h.1:out"), ("blocks.1.hook_resid_pre", "transformer.h.1:in"),
    ("blocks.1.hook_mlp_out", "transformer.h.1.mlp:out"), ("blocks.1.hook_attn_out", "transformer.h.1.attn:out"),
    ("blocks.1.hook_resid_mid", "transformer.h.1.ln_2:in"), ("transformer.h.1.mlp", "transformer.h.1.mlp:out"),
    ("blocks.1.attn.hook_z", "transformer.h.1.attn.c_proj:in"),
    ("blocks.1.mlp.hook_post", "transformer.h.1.mlp.c_proj:in"), ("hook_embed", "transformer.wte:out"),
])  # fmt: skip
def test_hooks_of_transformer_lens(hook, site):
    model = load_model(tiny.model("gpt2"), tokenizer=tiny.tokenizer())
    assert str(site_of_hook(model, hook)) == site
    for wrong in ("blocks.9.hook_resid_post", "blocks.0.ln1.hook_scale", "nothing"):
        with pytest.raises(SiteError):
            site_of_hook(model, wrong)


@pytest.mark.parametrize("hook", [
    "attn.hook_z", "mlp.hook_post", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_pre",
    "hook_resid_post", "hook_embed",
])  # fmt: skip
def test_every_hook_of_the_table_trains_and_is_kept_as_it_was_given(places, tmp_path, hook, caplog):
    name = hook if hook == "hook_embed" else f"blocks.1.{hook}"
    width = 4 * tiny.DIM if hook == "mlp.hook_post" else tiny.DIM
    cfg = tutorial(places, tmp_path, hook_name=name, hook_layer=None, d_in=width)
    sae = SAETrainingRunner(cfg).run()
    assert sae.activation_dim == width and "hook_name=" not in caplog.text
    (run,) = (tmp_path / "checkpoints").iterdir()
    sae.save_model(tmp_path / "saved")
    for one in (sae, SAE.load_from_disk(run / "trainer_0"), SAE.load_from_disk(tmp_path / "saved")):
        assert one.cfg.hook_name == one.cfg.metadata.hook_name == name


OF_METADATA = ("model_name", "hook_name", "context_size", "prepend_bos", "dataset_path", "exclude_special_tokens",
               "disable_concat_sequences")  # fmt: skip
"""What SAELens 6 takes over from the config of a run."""


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_metadata_say_how_the_run_read_its_text(places, tmp_path, prepend_bos):
    """As the tutorial tokenizes text for a dictionary: by its context_size and prepend_bos."""
    cfg = tutorial(places, tmp_path, prepend_bos=prepend_bos, hook_layer=None)
    sae = SAETrainingRunner(cfg).run()
    (run,) = (tmp_path / "checkpoints").iterdir()
    sae.save_model(tmp_path / "saved")
    convert(run / "trainer_0", tmp_path / "own", to="own")
    convert(tmp_path / "own", tmp_path / "again", to="sae_lens")
    for place in (
        None,
        run / "trainer_0",
        run / "trainer_0" / "checkpoints" / "step_4",
        *(tmp_path / name for name in ("saved", "own", "again")),
    ):
        found = sae if place is None else SAE.load_from_disk(place)
        assert {name: found.cfg.metadata[name] for name in OF_METADATA} == {
            name: getattr(cfg, name) for name in OF_METADATA
        }, place
        assert found.cfg.context_size == 16 and found.cfg.prepend_bos is prepend_bos


def test_metadata_say_nothing_of_what_was_given_instead(places, tmp_path):
    changes = tutorial(places, tmp_path, checkpoint_path=None, n_checkpoints=0, d_in=None).given
    cfg = LanguageModelSAERunnerConfig(**{k: v for k, v in changes.items() if k not in ("model_name", "dataset_path")})
    model = load_model(tiny.model("gpt2"), tokenizer=tiny.tokenizer())
    sae = SAETrainingRunner(cfg, override_dataset=tiny.documents(60), override_model=model).run()
    assert sae.cfg.dataset_path is None and sae.cfg.model_name != "gelu-2l"


@pytest.mark.parametrize(("options", "expected"), [
    ({}, True), ({"add_special_tokens": False}, False), ({"tokens": {"bos": "document"}}, False),
    ({"tokens": {"bos": "none", "separator": "eos"}}, False), ({"pack": False}, True),
])  # fmt: skip
def test_metadata_of_a_run_of_this_package(places, tmp_path, options, expected):
    model, options = load_model(str(places / "model")), dict(options)
    data = as_source(tiny.documents(60))
    if tokens := options.pop("tokens", None):
        data = TokenStream(data, model.tokenizer, ctx_len=16, epochs=None, **tokens)
    buffer = ActivationBuffer(data, model, "transformer.h.1", ctx_len=16, n_ctxs=16, out_batch_size=32, **options)
    trainSAE(buffer, TrainerTopK.Config(k=4, dict_size=64), 2, save_dir=tmp_path / "run", progress=False, device="cpu")
    convert(tmp_path / "run" / "trainer_0", tmp_path / "converted", to="sae_lens")
    for place in (tmp_path / "run" / "trainer_0", tmp_path / "converted"):
        said = SAE.load_from_disk(place).cfg.metadata
        assert (said.context_size, said.prepend_bos, said.hook_name) == (16, expected, "blocks.1.hook_resid_post")
        assert said.disable_concat_sequences is (options.get("pack") is False)


def test_a_config_may_name_heads_as_the_data_did(places):
    model = load_model(str(places / "model"))
    for named in ("transformer.h.1:heads", "embedding"):
        buffer = ActivationBuffer(tiny.documents(60), model, named, ctx_len=16, n_ctxs=16, out_batch_size=32)
        (sae,) = trainSAE(buffer, TrainerTopK.Config(k=4, dict_size=64, site=named), 2, progress=False, device="cpu")
        assert sae.activation_dim == tiny.DIM


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


@pytest.mark.parametrize(("changes", "word"), [
    ({"residual_threshold": 0.5}, "max_iterations"), ({"stop_on_duplicate_support": False}, "twice"),
    ({"reshape_activations": "hook_z"}, "heads"),
])  # fmt: skip
def test_fields_of_coders_that_cannot_be_translated(places, tmp_path, changes, word):
    coder = MatchingPursuitTrainingSAEConfig(**SIZES, max_iterations=5, **changes)
    with pytest.raises(ConfigError, match=word):
        SAETrainingRunner(nested(places, tmp_path, coder))


def test_latents_are_said_once(places, tmp_path):
    def latents(**given):
        cfg = tutorial(places, tmp_path, **given)
        check_fields(cfg)
        return trainer_config(cfg, tiny.DIM, "x:out").dict_size

    assert latents(expansion_factor=None, d_sae=40) == 40 and latents(expansion_factor=2) == 2 * tiny.DIM
    assert latents(expansion_factor=None) == latents(expansion_factor=None, d_sae=None) == 4 * tiny.DIM
    with pytest.raises(ConfigError, match="d_sae=40 and expansion_factor=16"):
        latents(d_sae=40)
    for wrong in ({"d_sae": 0, "expansion_factor": None}, {"expansion_factor": "x"}, {"expansion_factor": 1.5}):
        with pytest.raises(ConfigError, match="positive whole number"):
            latents(**wrong)
    with pytest.raises(ConfigError, match="lr_warm_up_steps=1000"):
        trainer_config(tutorial(places, tmp_path, lr_warm_up_steps=1000), tiny.DIM, "x:out")


def test_a_normalized_dictionary_has_the_directions_of_the_one_inside(places, tmp_path):
    cfg = tutorial(places, tmp_path, normalize_activations="constant_norm_rescale")
    sae = SAETrainingRunner(cfg).run()
    assert sae.W_dec.shape == (16 * tiny.DIM, tiny.DIM) and sae.b_dec.shape == (tiny.DIM,)
    assert sae.W_dec is sae.dictionary.W_dec is sae.dictionary.dictionary.W_dec
    assert sae.W_enc.shape == (tiny.DIM, 16 * tiny.DIM)  # as there
    assert sae.cfg.normalize_activations == "constant_norm_rescale"


def test_wrong_fields(places, tmp_path, caplog):
    with pytest.raises(UnknownNameError, match="l1_coefficient"):
        LanguageModelSAERunnerConfig(l1_coeficient=3)
    with pytest.raises(ConfigError, match="twice"):
        LanguageModelSAERunnerConfig(hook_point="blocks.0.hook_mlp_out", hook_name="blocks.1.hook_mlp_out")
    with pytest.raises(ConfigError, match="sae="):  # its k would be that of nobody
        trainer_config(tutorial(places, tmp_path, architecture="abstopk"), tiny.DIM, "x:out")
    with pytest.raises(ConfigError, match="d_in=1024"):
        trainer_config(tutorial(places, tmp_path, d_in=1024), tiny.DIM, "x:out")
    with pytest.raises(ModelError, match="TransformerLens"):
        SAETrainingRunner(tutorial(places, tmp_path, model_name="gelu-2l"))
    with pytest.raises(ConfigError, match="hook_layer=2"):
        SAETrainingRunner(tutorial(places, tmp_path, hook_layer=2))
    check_fields(tutorial(places, tmp_path, compile_llm=True))
    assert "compile_llm=True has no effect" in caplog.text
    check_fields(nested(places, tmp_path, TopKTrainingSAEConfig(k=5, device="cuda"), model_class_name="HookedMamba"))
    assert "device='cuda' of the coder" in caplog.text and "HookedMamba" in caplog.text
    assert tutorial(places, tmp_path).lp_norm == 1.0
    with pytest.raises(AttributeError):
        _ = tutorial(places, tmp_path).nothing
