"""The runners of SAELens and of mats_sae_training: a config in, a trained dictionary out."""

import copy
import importlib.util
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dictionary_learning import parallel
from dictionary_learning._held_out_data import IN_TRAINING
from dictionary_learning._provenance import RUN
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.compat.saelens._fields import RENAMED
from dictionary_learning.compat.saelens._hooks import site_of_hook
from dictionary_learning.compat.saelens._translation import (
    autocast_dtype,
    check_fields,
    model_of,
    save_steps,
    steps_of,
    trainer_config,
)
from dictionary_learning.compat.saelens.config import LanguageModelSAERunnerConfig, Session
from dictionary_learning.compat.saelens.sae import SAE
from dictionary_learning.data import Source, as_source
from dictionary_learning.dictionaries import Dictionary, expand_or_convert, fold_decoder_norm_, load_dictionary
from dictionary_learning.dictionaries.nonlinearities import MatchingPursuit, StoppedPursuit
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.evaluation import EvaluationConfig
from dictionary_learning.interop._sae_lens_writing import SAE_LENS, SITE
from dictionary_learning.interop._safe import read_json
from dictionary_learning.models import TracedModel, load_model
from dictionary_learning.sites import Site
from dictionary_learning.trainers import MatchingPursuitTrainer
from dictionary_learning.training import trainSAE

logger = logging.getLogger(__name__)

_LEVELS = 4
"""Folders above a dictionary in which the record of its run is looked for."""
_HELD_OUT = 100
"""One of this many documents is evaluated on, and not trained on."""


class LanguageModelSAETrainingRunner:
    """Trains one dictionary as a config of SAELens says, and returns it.

    Args:
        cfg: The config.
        override_dataset: Text, instead of that of `dataset_path`.
        override_model: A model, instead of that of `model_name`.
        override_sae: A dictionary to train further.
    """

    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig,
        override_dataset: Any = None,
        override_model: Any = None,
        override_sae: Any = None,
    ):
        check_fields(cfg)
        overrides = {"model_name": override_model, "dataset_path": override_dataset}
        # a default says nothing of what is given instead
        self._unsaid = {name for name, given in overrides.items() if given is not None and name not in cfg.given}
        self.cfg, self.sae = cfg, override_sae
        # before the model is loaded: of several processes, each has a device of its own
        self.world = parallel.start()
        if override_model is None:
            dtype = "bfloat16" if cfg.autocast_lm else "float32"
            override_model = load_model(model_of(cfg), device=cfg.llm_device or str(cfg.device), dtype=dtype)
        self.model: TracedModel = load_model(override_model)
        self.site = site_of_hook(self.model, cfg.hook_name)
        _check_layer(cfg)
        data = cfg.dataset_path if override_dataset is None else override_dataset
        if isinstance(data, str) and not data:
            raise ConfigError("There is no dataset_path. Give the name of a data set, a file, or override_dataset.")
        self.data = data if hasattr(data, "take") else as_source(data, streaming=cfg.streaming)

    def run(self) -> SAE:
        """Trains, saves in SAELens' format under `checkpoint_path`, and returns the dictionary.

        It has the values of SAELens: where latents are ranked by value times decoder norm, they are
        the products.
        """
        cfg, log, steps = self.cfg, self.cfg.logging, steps_of(self.cfg)
        width = self.model.widths([self.site])[self.site]
        config = trainer_config(cfg, width, str(self.site))
        if self.sae is not None:
            config = config.replace(finetune=self.sae, dict_size=None)
        period = log.wandb_log_frequency * log.eval_every_n_wandb_logs
        data, evaluation = self.data, {}
        if period <= steps and isinstance(data, Source):
            data, held_out = data.hold_out(_HELD_OUT)
            prompts = cfg.eval_batch_size_prompts or cfg.store_batch_size_prompts
            tokens = cfg.n_eval_batches * prompts * cfg.context_size
            how_much = EvaluationConfig(
                n_tokens=tokens, n_fidelity_tokens=tokens, ctx_len=cfg.context_size, batch_size=prompts
            ).replace(**IN_TRAINING)
            evaluation = {"evaluate_every": period, "evaluation_data": held_out, "evaluation": how_much}
        use_wandb = log.log_to_wandb and importlib.util.find_spec("wandb") is not None
        if log.log_to_wandb and not use_wandb:
            logger.warning("log_to_wandb=True, and wandb is not installed: the log is in metrics.jsonl only.")
        run_name = log.wandb_id or self.world.share(secrets.token_hex(4))
        saved: dict[str, Any] = {}
        if cfg.checkpoint_path is not None:
            save_format = "sae_lens" if _is_as_there(config) else "own"
            folder = Path(cfg.checkpoint_path) / run_name
            saved = {"save_dir": folder, "save_steps": save_steps(cfg), "save_format": save_format}
        (trained,) = trainSAE(
            buffer_of(cfg, self.model, self.site, data),
            config,
            steps,
            log_steps=log.wandb_log_frequency,
            use_wandb=use_wandb,
            wandb_project=log.wandb_project,
            wandb_entity=log.wandb_entity or "",
            device=str(cfg.device),
            autocast_dtype=autocast_dtype(cfg),
            run_cfg={SAE_LENS: self._record()},
            **saved,
            **evaluation,
        )
        sae = SAE(_as_there(trained, cfg))
        if cfg.output_path is not None:
            parallel.on_first(self.world, lambda: sae.save_model(cfg.output_path))
        return sae

    def _record(self) -> dict[str, Any]:
        """Returns what the files of the run say of its config."""
        fields = {name: value for name, value in _plain(self.cfg).items() if name not in self._unsaid}
        return {**fields, SITE: str(self.site)}


SAETrainingRunner = LanguageModelSAETrainingRunner


def language_model_sae_runner(cfg: LanguageModelSAERunnerConfig, **overrides: Any) -> SAE:
    """Trains as `SAETrainingRunner(cfg).run()` does; the name in mats_sae_training."""
    return SAETrainingRunner(cfg, **overrides).run()


class LMSparseAutoencoderSessionloader:
    """Rebuilds what a dictionary was trained with: `model, sae, activations_loader`."""

    def __init__(self, cfg: LanguageModelSAERunnerConfig, override_dataset: Any = None, override_model: Any = None):
        self.runner = LanguageModelSAETrainingRunner(cfg, override_dataset, override_model)

    def load_sae_training_group_session(self) -> Session:
        """Returns the model, a new dictionary, and activations."""
        runner = self.runner
        width = runner.model.widths([runner.site])[runner.site]
        config = trainer_config(runner.cfg, width, str(runner.site))
        sae = config.build(activation_dim=width, steps=steps_of(runner.cfg)).dictionary
        return Session(runner.model, SAE(sae), buffer_of(runner.cfg, runner.model, runner.site, runner.data))

    load_session = load_sae_training_group_session

    @classmethod
    def load_session_from_pretrained(
        cls, path: str, override_dataset: Any = None, override_model: Any = None
    ) -> Session:
        """Returns the model, the dictionary and activations of a run, or of a file of it.

        Args:
            path: A file or a folder of mats_sae_training or SAELens, or a run of this package.
            override_dataset: Text, instead of that of the run.
            override_model: A model, instead of that of the run.

        Raises:
            CheckpointError: The files do not say what it was trained with.
        """
        sae = load_dictionary(path)
        said = {**_said(sae), **_said_by_run(Path(path))}
        known = LanguageModelSAERunnerConfig.flat_defaults
        fields = {name: value for name, value in said.items() if name in known and name in _OF_SESSIONS}
        fields.setdefault("model_name", sae.info.model)
        if "hook_name" not in fields and sae.info.sites:
            fields["hook_name"] = sae.info.sites[0]
        missing = [name for name in ("model_name", "hook_name") if not fields.get(name)]
        if missing and override_model is None:
            raise CheckpointError(f"'{path}' does not say its {', '.join(missing)}. Give override_model, and a run.")
        cfg = LanguageModelSAERunnerConfig(**{**fields, "log_to_wandb": False})
        runner = LanguageModelSAETrainingRunner(cfg, override_dataset, override_model)
        return Session(runner.model, SAE(sae), buffer_of(cfg, runner.model, runner.site, runner.data))


_OF_SESSIONS = (
    "model_name", "hook_name", "hook_layer", "dataset_path", "context_size", "prepend_bos", "n_batches_in_buffer",
    "store_batch_size_prompts", "train_batch_size_tokens", "streaming", "seed",
)  # fmt: skip


def buffer_of(cfg: Any, model: TracedModel, site: Site, data: Any) -> ActivationBuffer:
    """Returns the activations that a config trains on."""
    # in the units of prompts: a batch of the store is store_batch_size_prompts contexts
    n_ctxs = cfg.n_batches_in_buffer * cfg.store_batch_size_prompts
    n_ctxs = max(n_ctxs, -(-cfg.train_batch_size_tokens // cfg.context_size), 2)
    start = tuple(cfg.seqpos_slice)
    return ActivationBuffer(
        data,
        model,
        site,
        n_ctxs=n_ctxs,
        ctx_len=cfg.context_size,
        refresh_batch_size=cfg.store_batch_size_prompts,
        out_batch_size=cfg.train_batch_size_tokens,
        device=None if cfg.act_store_device == "with_model" else cfg.act_store_device,
        remove_bos=cfg.exclude_special_tokens,
        add_special_tokens=cfg.prepend_bos,
        max_activation_norm_multiple=None,
        pack=not cfg.disable_concat_sequences,
        end_of_data="repeat",
        seed=cfg.seed,
        seqpos_slice=None if start == (None,) else start,
    )


def _is_as_there(config: Any) -> bool:
    """Returns whether SAELens has files for what is trained, without a conversion at the end."""
    return not getattr(config, "rank_by_norm", None) and not isinstance(config, MatchingPursuitTrainer.Config)


def _as_there(trained: Dictionary, cfg: Any) -> Dictionary:
    """Returns a dictionary with the values of SAELens."""
    made: Any = trained
    if getattr(made, "rank_by_norm", False):  # SAELens holds latents times decoder norms
        made = copy.deepcopy(trained)
        fold_decoder_norm_(made)
    if isinstance(getattr(made, "nonlinearity", None), MatchingPursuit):  # where tokens may stop early
        coder = cfg.coder
        stopped = StoppedPursuit(made.k, coder.residual_threshold, coder.stop_on_duplicate_support)
        made = expand_or_convert(made, nonlinearity=stopped)
    return made


def _check_layer(cfg: Any) -> None:
    parts = [part for part in str(cfg.hook_name).split(".") if part.isdigit()]
    if cfg.hook_layer is not None and parts and int(parts[0]) != cfg.hook_layer:
        raise ConfigError(f"Got hook_layer={cfg.hook_layer} with hook_name={cfg.hook_name!r}. Leave hook_layer out.")


def _plain(cfg: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for owner in {id(one): one for one in (cfg, cfg.coder, cfg.logging)}.values():
        own = owner.to_dict().items()
        found |= {name: value for name, value in own if isinstance(value, (str, int, float, type(None)))}
    return found


def _said(sae: Dictionary) -> dict[str, Any]:
    """Returns what the files of a dictionary say about its run, by the names of SAELens."""
    config: Mapping[str, Any] = sae.info.config
    peer = config.get("peer") or {}
    return _read(peer) | _read(peer.get("metadata")) | _read((config.get("run") or {}).get(SAE_LENS))


def _said_by_run(path: Path) -> dict[str, Any]:
    """Returns the fields that the record of a run has, in whose folder a dictionary is."""
    for folder in (path, *path.absolute().parents)[:_LEVELS]:
        if (folder / RUN).is_file():
            found: Any = read_json(folder / RUN)
            for key in ("arguments", "run_cfg", SAE_LENS):
                found = found.get(key) if isinstance(found, Mapping) else None  # it may be another's file
            return _read(found)
    return {}


def _read(fields: Any) -> dict[str, Any]:
    found: Mapping[str, Any] = fields if isinstance(fields, Mapping) else {}
    return {RENAMED.get(name, name): value for name, value in found.items() if value is not None}


__all__ = [
    "LMSparseAutoencoderSessionloader",
    "LanguageModelSAETrainingRunner",
    "SAETrainingRunner",
    "language_model_sae_runner",
]
