"""Names of SAELens and of mats_sae_training that have no counterpart, and what to use instead."""

_IN_MODELS = (
    "Latents are read and changed in the model of transformers: load_model(name), and read_latents(model, sae, text), "
    "latent_edits(model, sae, ablate=[...]) and attached(model, edits) of dictionary_learning.interventions"
)
_ACTIVATIONS = (
    "ActivationBuffer(data, model, site) yields batches of shuffled activations; SAETrainingRunner(cfg) makes one of "
    "its own, and LMSparseAutoencoderSessionloader.load_session_from_pretrained(path) returns one"
)
_CACHE = "write_cache(path, data, model, site) writes activations, and trainSAE takes ActivationCache(path) as data"
_PRETOKENIZED = (
    "dictionary_learning.data.pretokenize(data, tokenizer, out, ctx_len=...) writes token ids, which are data of "
    "trainSAE's buffers; they are not needed, since text is tokenized while it is read"
)
_SEVERAL = "trainSAE(data, [config, config, ...], steps) trains several on one stream of activations"
_TRAINER = "SAETrainingRunner(cfg).run() trains; trainSAE(data, config, steps) does so from any data"
_ONE_CLASS = (
    "SAE has every architecture here: SAE.load_from_disk and SAE.from_pretrained load it, and sae.cfg.architecture "
    "says which it is"
)
_REGISTERED = "A method of yours is a trainer: docs/add_a_method.md. A class of yours is a subclass of Dictionary"
_LOADED = "load_dictionary(path, format=...) reads the formats of docs/formats.md; list_pretrained() lists releases"
_TOY = "dictionary_learning.synthetic has features that are known: SyntheticActivations(SyntheticConfig(...)) is data"
_TRAINED_IN = "The classes for training are not apart: SAETrainingRunner(cfg).run() returns an SAE"
_EVALUATED = (
    "evaluate_dictionaries(model, [Candidate(name, sae, site)], text) measures reconstruction, sparsity and what the "
    "model's predictions lose"
)

_CLASSES = (
    "StandardSAE", "TopKSAE", "AbsTopKSAE", "JumpReLUSAE", "GatedSAE", "MatchingPursuitSAE", "TemporalSAE",
    "Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder",
)  # fmt: skip
_TRAINING_CLASSES = (
    "StandardTrainingSAE", "TopKTrainingSAE", "AbsTopKTrainingSAE", "BatchTopKTrainingSAE", "JumpReLUTrainingSAE",
    "GatedTrainingSAE", "MatchingPursuitTrainingSAE", "MatryoshkaBatchTopKTrainingSAE", "TrainingSAE",
)  # fmt: skip

NAMES: dict[str, str] = {
    "HookedSAETransformer": _IN_MODELS,
    "SAETransformerBridge": _IN_MODELS,
    "run_with_saes": _IN_MODELS,
    "run_with_cache_with_saes": _IN_MODELS,
    "run_with_hooks_with_saes": _IN_MODELS,
    "ActivationsStore": _ACTIVATIONS,
    "CacheActivationsRunner": _CACHE,
    "CacheActivationsRunnerConfig": _CACHE,
    "PretokenizeRunner": _PRETOKENIZED,
    "PretokenizeRunnerConfig": _PRETOKENIZED,
    "pretokenize_runner": _PRETOKENIZED,
    "SAETrainer": _TRAINER,
    "SAETrainerConfig": _TRAINER,
    "MultiSAETrainingRunner": _SEVERAL,
    "MultiSAETrainingRunnerConfig": _SEVERAL,
    "MultiSAEEvaluator": _EVALUATED,
    "SAETrainingGroup": _SEVERAL,
    "SAEGroup": _SEVERAL,
    "run_evals": _EVALUATED,
    "EvalConfig": _EVALUATED,
    "get_eval_everything_config": _EVALUATED,
    "upload_saes_to_huggingface": "push_to_hub(sae, 'owner/name', site='blocks.8.hook_resid_pre', format='sae_lens') "
    "uploads one dictionary",
    "PretrainedSaeHuggingfaceLoader": _LOADED,
    "PretrainedSaeDiskLoader": _LOADED,
    "get_pretrained_saes_directory": _LOADED,
    "register_sae_class": _REGISTERED,
    "register_sae_training_class": _REGISTERED,
    "ToyModelSAERunner": _TOY,
    "ToyModelSAERunnerConfig": _TOY,
    "toy_model_sae_runner": _TOY,
    **dict.fromkeys(_CLASSES, _ONE_CLASS),
    **dict.fromkeys((f"{name}Config" for name in _CLASSES), "sae.cfg has the settings of a dictionary that was loaded"),
    **dict.fromkeys(_TRAINING_CLASSES, _TRAINED_IN),
}
"""Names of `sae_lens`."""
MATS_NAMES: dict[str, dict[str, str]] = {
    "activations_store": {"ActivationsStore": _ACTIVATIONS},
    "cache_activations_runner": {"CacheActivationsRunner": _CACHE, "cache_activations_runner": _CACHE},
    "config": {"CacheActivationsRunnerConfig": _CACHE, "RunnerConfig": "LanguageModelSAERunnerConfig has all fields"},
    "evals": {"run_evals": _EVALUATED},
    "geometric_median": {
        "compute_geometric_median": "dictionary_learning.trainers.top_k.geometric_median(points) returns the median"
    },
    "sae_group": {"SAEGroup": _SEVERAL, "SAETrainingGroup": _SEVERAL},
    "sparse_autoencoder": {
        "SparseAutoencoder": "SAE.load_from_pretrained(path) of dictionary_learning.compat.saelens reads its files; "
        "sae(x) is the reconstruction alone, and sae.encode(x) the latents"
    },
    "toy_model_runner": {"SAEToyModelRunnerConfig": _TOY, "toy_model_sae_runner": _TOY},
    "toy_models": {"Config": _TOY, "Model": _TOY},
    "train_sae_on_language_model": {
        "train_sae_on_language_model": _TRAINER,
        "train_sae_group_on_language_model": _TRAINER,
    },
    "train_sae_on_toy_model": {"train_toy_sae": _TOY},
}
"""Names of `sae_training`, by its modules."""
_HOOKS = (
    "hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_output", "hook_sae_recons",
    "hook_sae_error",
)  # fmt: skip
SAE_ATTRIBUTES: dict[str, str] = {
    "use_error_term": "latent_edits(model, sae, ...) of dictionary_learning.interventions keeps the error by default; "
    "keep_error=False leaves it out",
    **dict.fromkeys((*_HOOKS, "run_with_cache", "run_with_hooks", "add_hook", "hook_dict"), _IN_MODELS),
    "train_step": _TRAINER,
    "training_forward_pass": _TRAINER,
    "encode_with_hidden_pre": "sae.dictionary.pre_activations(x) and sae.encode(x) return both",
    "process_sae_in": "sae.encode(x) does it",
    "activation_fn": "sae.dictionary.nonlinearity is it",
}
"""Attributes of `SAE` there."""
