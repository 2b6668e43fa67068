"""`dictionary-learning train`: from text to several trained dictionaries and their report."""

import argparse
import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.cli.arguments import add_config, read_config, read_configs
from dictionary_learning.cli.candidates import candidates_of
from dictionary_learning.cli.capture_options import CaptureArguments
from dictionary_learning.cli.evaluate import report_on
from dictionary_learning.contexts import ContextStream
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.dictionaries.serialization import read_config_file
from dictionary_learning.errors import ConfigError
from dictionary_learning.evaluation import EvaluationConfig, evaluate_dictionaries
from dictionary_learning.interop.saved import Saved
from dictionary_learning.loggers import MetricLogger, TensorBoardLogger
from dictionary_learning.models import TracedModel
from dictionary_learning.trainers import TRAINERS, SAETrainer
from dictionary_learning.trainers._base import trainer_of
from dictionary_learning.trainers.recipes import RECIPES
from dictionary_learning.training import trainSAE

logger = logging.getLogger(__name__)

Activations = ActivationBuffer | ActivationCache | ContextStream

FILLED_IN = (
    "activation_dim",
    "steps",
    "site",
    "target_site",
    "site_dims",
    "output_dims",
    "device",
    "layer",
    "lm_name",
    "submodule_name",
    "wandb_name",
    "dict_class",
)
"""Settings of a trainer that the run knows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainArguments(CaptureArguments):
    """What to train on, for how long, and where the results go."""

    model: str | None = None
    """The language model: a name on the Hugging Face hub, a local folder, or a GGUF file. With --cache it is loaded after training, to
    evaluate, and may be left out."""
    data: str | None = None
    """The data: a file (.txt, .jsonl, .parquet, .npy and others), a folder or pattern of files, or the name of a data set on the hub."""
    cache: str | None = None
    """Trains on a cache that `dictionary-learning cache` wrote, with no language model loaded."""
    save_dir: str = "runs/latest"
    """The folder for the dictionaries, the figures and the report."""
    n_tokens: int = 1_000_000
    """Tokens to train on."""
    batch_size: int = 2048
    """Tokens in a training step."""
    n_ctxs: int = 1024
    """Contexts that the shuffle buffer holds."""
    storage_dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = None
    """What the shuffle buffer keeps rows as; the model's dtype, if not given."""
    end_of_data: Literal["stop", "repeat", "error"] = "repeat"
    """What happens when the data ends."""
    normalize_activations: bool = False
    """Whether activations are scaled to unit mean squared norm while training."""
    n_eval_tokens: int = 32_768
    """Tokens that the dictionaries are evaluated on."""
    n_fidelity_tokens: int = 8_192
    """Tokens on which cross-entropy is measured, with each dictionary grafted in."""
    log_steps: int | None = None
    """Steps between two entries of the log; by default 100 entries."""
    save_steps: tuple[int, ...] = ()
    """Steps after which the dictionaries are saved too."""
    wandb_project: str | None = None
    """Logs to this project on Weights & Biases."""
    tensorboard: bool = False
    """Writes for TensorBoard, in the folder's tensorboard/."""


def add_parser(commands: argparse._SubParsersAction, arguments: list[str]) -> None:
    """Adds the command; the options of a trainer depend on which one the arguments name."""
    parser = commands.add_parser(
        "train",
        help="train dictionaries on a language model, and evaluate them",
        description="Trains dictionaries on a language model's activations, evaluates them on held-out text and writes a report. "
        "Options of the trainer take several values each; a dictionary is trained for every combination, on every site.",
    )
    add_config(parser, TrainArguments, positional=("model", "data"))
    parser.add_argument("--trainer", default="top_k", help=f"the method: {', '.join(TRAINERS)} (default: top_k)")
    parser.add_argument(
        "--recipe", help=f"a published recipe, in place of a trainer and its defaults: {', '.join(RECIPES)}"
    )
    trainer, defaults = _chosen(arguments)
    add_config(parser, trainer.Config, exclude=FILLED_IN, several=True, defaults=defaults)
    parser.set_defaults(run=run)


def run(namespace: argparse.Namespace) -> None:
    """Runs the command."""
    trainer = TRAINERS[namespace.trainer]
    if namespace.recipe:
        trainer = trainer_of(RECIPES[namespace.recipe]())
    train(read_config(namespace, TrainArguments), read_configs(namespace, trainer.Config, FILLED_IN))


def _chosen(arguments: list[str]) -> tuple[type[SAETrainer], SAETrainer.Config | None]:
    """Returns the trainer that the arguments name, and the defaults of the recipe if they name one."""
    chosen = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chosen.add_argument("--trainer", default="top_k")
    chosen.add_argument("--recipe")
    named = chosen.parse_known_args(arguments)[0]
    if not named.recipe:
        return TRAINERS[named.trainer], None
    config = RECIPES[named.recipe]()
    return trainer_of(config), config


def train(arguments: TrainArguments, trainer_configs: list[SAETrainer.Config]) -> Path | None:
    """Trains, saves, evaluates and reports; returns the path of the report's page, or None where nothing could be evaluated.

    Raises:
        ConfigError: neither a model and data nor a cache was given.
    """
    if arguments.cache is None and (arguments.model is None or arguments.data is None):
        raise ConfigError(
            "Give a model and data to train on, as 'train MODEL DATA', or a cache, as 'train --cache FOLDER'."
        )
    start = time.monotonic()
    text = arguments.divided(arguments.data, arguments.held_out_every) if arguments.data is not None else None
    model = arguments.load(arguments.model) if arguments.model is not None and arguments.cache is None else None
    source = _source(arguments, model, text, trainer_configs)
    loaded = time.monotonic()
    dictionaries = _train(arguments, trainer_configs, source)
    source.close()
    trained = time.monotonic()
    save_dir = Path(arguments.save_dir)
    if text is None or arguments.model is None:
        logger.info(
            "Trained in %.0f s. Evaluate with: dictionary-learning evaluate %s --model MODEL --data DATA",
            trained - loaded,
            save_dir,
        )
        return None
    held_out = text[1]
    logger.info("Trained in %.0f s. Evaluating on %s.", trained - loaded, held_out.name)
    folders = [save_dir / f"trainer_{n}" for n in range(len(dictionaries))]
    configs = [read_config_file(folder) for folder in folders]
    saved = [Saved(c["name"], d, c, f) for c, d, f in zip(configs, dictionaries, folders, strict=True)]
    model = model or arguments.load(arguments.model)
    report = evaluate_dictionaries(
        model,
        candidates_of(saved, model),
        held_out,
        EvaluationConfig(
            n_tokens=arguments.n_eval_tokens,
            n_fidelity_tokens=arguments.n_fidelity_tokens,
            ctx_len=source.config["ctx_len"],
            pack=source.config["pack"],
        ),
        token_filter=source.filter,
        norm_limits=source.norm_limits,
    )
    seconds = {"load": loaded - start, "train": trained - loaded, "evaluate": time.monotonic() - trained}
    return report_on(report, saved, save_dir, seconds)


def _source(
    arguments: TrainArguments,
    model: TracedModel | None,
    text: tuple[Any, Any] | None,
    trainer_configs: Sequence[SAETrainer.Config],
) -> Activations:
    """Returns what gives activations: a cache, a buffer over the model, or whole contexts where a method needs them.

    Raises:
        ConfigError: contexts are needed, and there are none in a cache or in one batch; or a cache is asked for layers.
    """
    of_contexts = any(config.needs_contexts for config in trainer_configs)
    if of_contexts and (arguments.cache is not None or arguments.batch_size < arguments.ctx_len):
        raise ConfigError(
            "This method trains on whole contexts, with the model: leave --cache out, and give a --batch-size of at least one context "
            f"({arguments.ctx_len} tokens)."
        )
    if arguments.cache is not None and (arguments.layers or arguments.layer_stride != 1):
        raise ConfigError(
            "Got --layers or --layer-stride with --cache; a cache knows sites, and not which of them are layers. Give --sites."
        )
    if arguments.cache is not None:
        return ActivationCache(
            arguments.cache,
            list(arguments.sites) or None,
            out_batch_size=arguments.batch_size,
            end_of_data=arguments.end_of_data,
            model=arguments.model,
        )
    assert model is not None and text is not None
    if of_contexts:
        logger.info(
            "Contexts stay whole: options of the shuffle buffer, of token norms and of positions have no effect."
        )
        return ContextStream(
            text[0],
            model,
            arguments.sites_of(model),
            ctx_len=arguments.ctx_len,
            batch_size=arguments.batch_size // arguments.ctx_len,
            remove_bos=arguments.remove_bos,
            pack=arguments.pack,
            predict=any(config.needs_predictions for config in trainer_configs),
            end_of_data=arguments.end_of_data,
        )
    return ActivationBuffer(
        text[0],
        model,
        arguments.sites_of(model),
        n_ctxs=arguments.n_ctxs,
        ctx_len=arguments.ctx_len,
        refresh_batch_size=arguments.refresh_batch_size,
        out_batch_size=arguments.batch_size,
        remove_bos=arguments.remove_bos,
        max_activation_norm_multiple=arguments.max_activation_norm_multiple,
        pack=arguments.pack,
        end_of_data=arguments.end_of_data,
        dtype=arguments.storage_dtype,
        seqpos_slice=arguments.positions,
        prefetch=arguments.prefetch,
    )


def _train(
    arguments: TrainArguments, trainer_configs: list[SAETrainer.Config], source: Activations
) -> list[Dictionary]:
    steps = math.ceil(arguments.n_tokens / arguments.batch_size)
    logger.info("Training on %s: %d steps.", ", ".join(map(str, source.sites)), steps)
    extra: list[MetricLogger] = (
        [TensorBoardLogger(Path(arguments.save_dir) / "tensorboard")] if arguments.tensorboard else []
    )
    return trainSAE(
        source,
        trainer_configs,
        steps,
        save_dir=arguments.save_dir,
        save_steps=arguments.save_steps,
        log_steps=arguments.log_steps,
        run_cfg=arguments.to_dict(),
        normalize_activations=arguments.normalize_activations,
        use_wandb=arguments.wandb_project is not None,
        wandb_project=arguments.wandb_project or "",
        device=arguments.device or getattr(getattr(source, "model", None), "device", None),
        loggers=extra,
    )
