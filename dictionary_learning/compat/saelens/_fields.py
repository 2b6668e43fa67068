"""The fields of configs of SAELens 3 to 6 and of mats_sae_training, and their defaults there."""

from typing import Any

RENAMED = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "train_batch_size": "train_batch_size_tokens",
    "total_training_tokens": "training_tokens",
    "store_batch_size": "store_batch_size_prompts",
    "activation_fn_str": "activation_fn",
    "decoder_heuristic_init_norm": "decoder_init_norm",
    "jumprelu_init_threshold": "initial_threshold",
    "from_pretrained": "from_pretrained_path",
}
"""Names of mats_sae_training and of single versions, and the one that is read here."""
_COMMON: dict[str, Any] = {
    "model_name": "gelu-2l", "model_class_name": "HookedTransformer", "hook_name": "blocks.0.hook_mlp_out",
    "hook_eval": "NOT_IN_USE", "hook_layer": None, "hook_head_index": None, "dataset_path": "",
    "dataset_trust_remote_code": True, "streaming": True, "is_dataset_tokenized": True, "context_size": 128,
    "use_cached_activations": False, "cached_activations_path": None, "from_pretrained_path": None,
    "n_batches_in_buffer": 20, "training_tokens": 2_000_000, "finetuning_tokens": 0, "finetuning_method": None,
    "store_batch_size_prompts": 32, "train_batch_size_tokens": 4096, "seqpos_slice": (None,),
    "disable_concat_sequences": False, "sequence_separator_token": "bos", "activations_mixing_fraction": 0.5,
    "use_chat_formatting": False, "exclude_special_tokens": False, "device": "cpu", "llm_device": None,
    "act_store_device": "with_model", "prefetch_llm_batches": False, "seed": 42, "dtype": "float32",
    "prepend_bos": True, "autocast": False, "autocast_lm": False, "compile_llm": False, "llm_compilation_mode": None,
    "compile_sae": False, "sae_compilation_mode": None, "adam_beta2": 0.999, "lr": 3e-4,
    "lr_scheduler_name": "constant", "lr_warm_up_steps": 0, "lr_end": None, "lr_decay_steps": 0,
    "n_restart_cycles": 1, "dead_feature_window": 1000, "feature_sampling_window": 2000,
    "dead_feature_threshold": 1e-8, "feature_sampling_method": None, "n_eval_batches": 10,
    "eval_batch_size_prompts": None, "n_checkpoints": 0, "checkpoint_path": "checkpoints", "output_path": None,
    "save_final_checkpoint": False, "resume": False, "resume_from_checkpoint": None, "verbose": True,
    "model_kwargs": None, "model_from_pretrained_kwargs": None, "n_batches_for_norm_estimate": 1000,
    "log_to_wandb": True, "log_activations_store_to_wandb": False, "log_optimizer_state_to_wandb": False,
    "log_weights_to_wandb": True, "wandb_project": "sae_lens_training", "wandb_id": None, "run_name": None,
    "wandb_entity": None, "wandb_log_frequency": 10, "eval_every_n_wandb_logs": 100, "sae_lens_version": None,
    "sae_lens_training_version": None,
}  # fmt: skip
_FLAT_CODER: dict[str, Any] = {
    "architecture": "standard", "d_in": None, "d_sae": None, "expansion_factor": 4,
    "b_dec_init_method": "geometric_median", "activation_fn": "relu", "activation_fn_kwargs": None,
    "normalize_sae_decoder": True, "noise_scale": 0.0, "apply_b_dec_to_input": True, "decoder_orthogonal_init": False,
    "decoder_heuristic_init": False, "decoder_init_norm": None, "init_encoder_as_decoder_transpose": False,
    "normalize_activations": "none", "mse_loss_normalization": None, "l1_coefficient": 1e-3, "lp_norm": 1.0,
    "scale_sparsity_penalty_by_decoder_norm": False, "l1_warm_up_steps": 0, "use_ghost_grads": False,
    "initial_threshold": 0.001, "jumprelu_bandwidth": 0.001, "adam_beta1": 0.0,
}  # fmt: skip
FLAT = {**_COMMON, **_FLAT_CODER, "wandb_project": "mats_sae_training_language_model"}
"""Fields of SAELens 3 to 5, where the coder's stand beside the others."""
MATS = {
    **FLAT, "adam_beta1": 0.9, "mse_loss_normalization": "dense_batch", "lr_scheduler_name": "constantwithwarmup",
    "lr_warm_up_steps": 500, "context_size": 128,
}  # fmt: skip
"""Those of mats_sae_training, whose errors are divided by the distance from the mean."""
NESTED = {**_COMMON, "sae": None, "logger": None, "adam_beta1": 0.9, "output_path": "output"}
"""Those of SAELens 6, where the coder has a config of its own."""
CODER_6: dict[str, Any] = {
    "d_in": None, "d_sae": None, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
    "normalize_activations": "none", "reshape_activations": "none", "metadata": None, "decoder_init_norm": 0.1,
}  # fmt: skip
_TOP_K = {"k": 100, "use_sparse_activations": False, "aux_loss_coefficient": 1.0, "rescale_acts_by_decoder_norm": True}
CODERS_6: dict[str, dict[str, Any]] = {
    "standard": {"l1_coefficient": 1.0, "lp_norm": 1.0, "l1_warm_up_steps": 0},
    "gated": {"l1_coefficient": 1.0, "l1_warm_up_steps": 0},
    "topk": _TOP_K,
    "abstopk": _TOP_K,
    "batchtopk": {**_TOP_K, "topk_threshold_lr": 0.01},
    "matryoshka_batchtopk": {
        **_TOP_K, "topk_threshold_lr": 0.01, "matryoshka_widths": (), "use_matryoshka_aux_loss": False,
    },
    "jumprelu": {
        "jumprelu_init_threshold": 0.01, "jumprelu_bandwidth": 0.05, "jumprelu_sparsity_loss_mode": "step",
        "l0_coefficient": 1.0, "l0_warm_up_steps": 0, "pre_act_loss_coefficient": None, "jumprelu_tanh_scale": 4.0,
        "jumprelu_ste_to_input": False, "target_l0": None,
    },
    "matching_pursuit": {"residual_threshold": 1e-2, "max_iterations": None, "stop_on_duplicate_support": True},
}  # fmt: skip
"""Fields of each kind of coder of SAELens 6."""
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "hook_head_index": (
        (None,), "train all heads: ActivationBuffer(..., io='heads') with activations_split_by_head=True"
    ),
    "use_cached_activations": ((False,), "give an ActivationCache to trainSAE; files of SAELens' cache are not read"),
    "finetuning_method": ((None,), "train further by from_pretrained_path"),
    "finetuning_tokens": ((0,), "train further by from_pretrained_path"),
    "resume": ((False,), "resume by trainSAE(..., resume='auto')"),
    "resume_from_checkpoint": ((None,), "resume by trainSAE(..., resume='auto')"),
    "noise_scale": ((0.0,), "no method here adds noise; raise the penalty"),
    "use_chat_formatting": ((False,), "give conversations as data, which the chat template renders"),
    "activations_mixing_fraction": ((0.5,), "half of the buffer is refilled at a time; change n_batches_in_buffer"),
    "reshape_activations": (("none",), "name the site 'model.layers.N:heads', which has all heads side by side"),
    "use_matryoshka_aux_loss": ((False,), "AuxK is on the whole dictionary here"),
    "sequence_separator_token": (("bos",), "documents are separated by BOS; give a TokenStream as override_dataset"),
    "residual_threshold": (
        (1e-2, 0), "each token takes max_iterations latents in training; lower max_iterations, or convert the trained "
        "dictionary to the nonlinearity stopped_pursuit"
    ),
    "stop_on_duplicate_support": ((True,), "no latent is chosen twice for a token"),
}  # fmt: skip
"""Fields that are refused unless they have a value without effect, and what to use instead."""
IGNORED: dict[str, tuple[tuple[Any, ...], str]] = {
    "compile_llm": ((False,), "models and dictionaries are not compiled"),
    "compile_sae": ((False,), "models and dictionaries are not compiled"),
    "log_activations_store_to_wandb": ((False,), "upload files yourself"),
    "log_optimizer_state_to_wandb": ((False,), "upload files yourself"),
    "model_class_name": (("HookedTransformer", "AutoModelForCausalLM"), "the model is that of transformers"),
    "model_kwargs": ((None, {}), "the model is that of transformers"),
    "model_from_pretrained_kwargs": (
        (None, {}, {"center_writing_weights": False}), "activations are those of the model of transformers, as they are"
    ),
    "feature_sampling_method": ((None, "anthropic"), "resampling is that of Anthropic"),
    "n_batches_for_norm_estimate": ((1000,), "norms are estimated on a sample that trainSAE draws"),
    "metadata": ((None, {}), "files say what this package knows of the run"),
}  # fmt: skip
"""Fields that have no effect, the values for which that is nothing to tell, and why."""
HARMLESS = (
    "hook_eval", "dataset_trust_remote_code", "is_dataset_tokenized", "cached_activations_path",
    "prefetch_llm_batches", "llm_compilation_mode", "sae_compilation_mode", "use_sparse_activations",
    "dead_feature_threshold", "save_final_checkpoint", "verbose", "log_weights_to_wandb", "sae_lens_version",
    "sae_lens_training_version",
)  # fmt: skip
"""Fields that are not read, and without which the same is trained: of speed, logs and labels."""
MODELS = {
    "gpt2-small": "gpt2",
    "tiny-stories-1L-21M": "roneneldan/TinyStories-1Layer-21M",
    "tiny-stories-1M": "roneneldan/TinyStories-1M",
    "tiny-stories-33M": "roneneldan/TinyStories-33M",
    **{f"pythia-{size}": f"EleutherAI/pythia-{size}" for size in ("14m", "70m", "160m", "410m", "1b", "1.4b", "2.8b")},
    **{f"pythia-{size}-deduped": f"EleutherAI/pythia-{size}-deduped" for size in ("70m", "160m", "410m", "1b", "1.4b")},
    **{f"gemma-{size}": f"google/gemma-{size}" for size in ("2b", "7b", "2-2b", "2-9b", "2-27b")},
}
"""Names of models in TransformerLens, and on the hub."""
OF_TRANSFORMER_LENS = ("gelu-1l", "gelu-2l", "gelu-3l", "gelu-4l", "solu-1l", "attn-only-1l", "attn-only-2l")
"""Models that only TransformerLens has."""
