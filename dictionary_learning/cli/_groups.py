"""In which group of `--help` an option stands, and which options most people need."""

_GROUPS = {
    "data": (
        "text_column", "split", "streaming", "data_args", "max_examples", "shuffle_seed", "token_dtype", "separator_id",
        "on_bad_document", "ctx_len", "pack", "remove_bos", "seqpos_slice", "max_activation_norm_multiple",
        "held_out_every", "end_of_data", "cache", "n_ctxs", "refresh_batch_size", "storage_dtype", "prefetch",
        "normalize_activations", "bos", "separator", "add_special_tokens", "chat_template",
        "mix", "weights", "mix_seed", "exhausted", "shuffle_buffer", "row_len", "system_prompt", "removal_frequency",
        "chat_seed", "padding_side", "long_documents", "rows", "epochs", "vocab_size", "exclude_tokens",
        "storage_device", "cache_window", "cache_order",
    ),
    "model and sites": (
        "revision", "dtype", "device", "sites", "target_sites", "layers", "layer_stride", "io", "load_in_8bit",
        "device_map", "trust_remote_code", "tokenizer", "model_args", "remote",
    ),
    "method": (
        "trainer", "recipe", "dict_size", "expansion_factor", "k", "wiring", "loss_fn", "n_heads", "finetune", "seed",
        "normalize", "unit_norm_decoder", "apply_b_dec_to_input", "rank_by_norm", "b_dec_init_method", "scale_encoder",
        "decoder_init_data_share",
        "decoder_init_norm", "init_encoder_as_decoder_transpose", "orthogonal_init", "reconstruction_weight",
        "k_anneal_steps", "k_anneal_start", "threshold_beta", "threshold_start_step", "multi_topk",
    ),
    "optimizer": (
        "lr", "optimizer", "beta1", "beta2", "eps", "max_grad_norm", "max_loss_ratio", "schedule", "warmup_steps",
        "decay_start", "ema_decay", "encoder_lr_factor", "decoder_lr_factor", "micro_acc_steps", "grad_acc_steps",
        "autocast_dtype", "activation_checkpointing", "cuda_graph",
    ),
    "dead latents": (
        "auxk_alpha", "k_aux", "auxk_every", "use_ghost_grads", "pre_act_loss_coefficient", "resample_steps",
        "dead_feature_threshold", "dead_feature_window", "feature_sampling_window",
    ),
    "run": (
        "config", "n_tokens", "batch_size", "save_dir", "overwrite", "resume", "allow_changed", "dry_run",
        "checkpoint_steps", "keep_checkpoints", "retrace", "save_steps", "on_anomaly", "patience", "placement",
        "latent_ranks", "tracing_ranks", "save_format", "resume_from",
    ),
    "figures": (
        "n_eval_tokens", "n_fidelity_tokens", "log_steps", "evaluate_every", "save_best", "wandb_project",
        "wandb_entity", "tensorboard", "verbose", "convention", "n_resamples", "ablations", "together", "all_tokens",
        "breakdown", "n_geometry_latents", "eval_batch_size", "eval_seed",
    ),
}  # fmt: skip
ESSENTIAL = frozenset(
    (
        "config", "trainer", "recipe", "dict_size", "expansion_factor", "k", "wiring", "lr", "seed", "layers", "sites",
        "n_tokens", "batch_size", "ctx_len", "device", "save_dir", "checkpoint_steps", "resume", "dry_run",
    )
)  # fmt: skip
"""Options that are shown where not all are, and no method is named."""
TITLES = tuple(_GROUPS)
"""The groups, in the order in which they are shown."""
_GROUP_OF = {name: title for title, names in _GROUPS.items() for name in names}


def group_of(name: str, otherwise: str) -> str:
    """Returns the title of the group of an option."""
    return _GROUP_OF.get(name, otherwise)
