"""`dictionary-learning train`: from text to several trained dictionaries and their report."""

import argparse
import dataclasses
import logging
import math
import time
from pathlib import Path
from typing import Literal

from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.cli.arguments import add_config, read_config, read_configs
from dictionary_learning.cli.evaluate import candidate_of, report_on
from dictionary_learning.config import BaseConfig
from dictionary_learning.data import as_text_source
from dictionary_learning.dictionaries.serialization import read_config_file
from dictionary_learning.evaluation import EvaluationConfig, evaluate_dictionaries
from dictionary_learning.loggers import MetricLogger, TensorBoardLogger
from dictionary_learning.models import load_model
from dictionary_learning.trainers import TRAINERS, SAETrainer, trainer_of
from dictionary_learning.trainers.recipes import RECIPES
from dictionary_learning.training import trainSAE

logger = logging.getLogger(__name__)

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
class TrainArguments(BaseConfig):
    """What to train on, for how long, and where the results go."""

    model: str
    """The language model: a name on the Hugging Face hub, a local folder, or a GGUF file."""
    data: str
    """The text: a .txt or .jsonl file, plain or .zst, or the name of a data set on the hub."""
    sites: tuple[str, ...] = ()
    """Sites or patterns to train on, as model.layers.10:out or model.layers.[0-3].mlp; by default the residual stream after
    the middle layer."""
    io: Literal["in", "out", "in_and_out"] = "out"
    """The side of sites that name none; in_and_out for wirings that predict a module's output from its input."""
    save_dir: str = "runs/latest"
    """The folder for the dictionaries, the figures and the report."""
    n_tokens: int = 1_000_000
    """Tokens to train on."""
    batch_size: int = 2048
    """Tokens in a training step."""
    ctx_len: int = 128
    """Tokens in a context."""
    n_ctxs: int = 1024
    """Contexts that the shuffle buffer holds."""
    refresh_batch_size: int = 16
    """Contexts in a forward pass of the model."""
    remove_bos: bool = True
    """Whether BOS, separators and the first token of each context are left out."""
    max_activation_norm_multiple: float | None = 10.0
    """Leaves out tokens with a norm above this multiple of the median."""
    pack: bool = True
    """Whether documents are joined into full contexts; else each is cut and padded."""
    end_of_data: Literal["stop", "repeat", "error"] = "repeat"
    """What happens when the text ends."""
    held_out_every: int = 20
    """Every n-th document is kept from training, and the dictionaries are evaluated on those."""
    text_column: str = "text"
    """The column or key that holds the text."""
    normalize_activations: bool = False
    """Whether activations are scaled to unit mean squared norm while training."""
    dtype: str | None = None
    """The model's dtype; bfloat16 where the hardware is fast at it, else float32."""
    device: str | None = None
    """Where everything runs; the accelerator if there is one."""
    revision: str | None = None
    """The model's branch, tag or commit on the hub."""
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


def train(arguments: TrainArguments, trainer_configs: list[SAETrainer.Config]) -> Path:
    """Trains, saves, evaluates and reports; returns the path of the report's page."""
    start = time.monotonic()
    text = as_text_source(arguments.data, text_column=arguments.text_column)
    train_text, held_out = text.hold_out(arguments.held_out_every)
    model = load_model(arguments.model, device=arguments.device, dtype=arguments.dtype, revision=arguments.revision)
    side = "in" if arguments.io == "in" else "out"
    sites = model.sites(list(arguments.sites), side) if arguments.sites else [model.middle_layer()]
    buffer = ActivationBuffer(
        train_text,
        model,
        sites,
        n_ctxs=arguments.n_ctxs,
        ctx_len=arguments.ctx_len,
        refresh_batch_size=arguments.refresh_batch_size,
        out_batch_size=arguments.batch_size,
        remove_bos=arguments.remove_bos,
        max_activation_norm_multiple=arguments.max_activation_norm_multiple,
        pack=arguments.pack,
        end_of_data=arguments.end_of_data,
    )
    loaded = time.monotonic()
    steps = math.ceil(arguments.n_tokens / arguments.batch_size)
    logger.info(
        "Training %d dictionaries on %s: %d steps.",
        len(trainer_configs) * len(sites),
        ", ".join(map(str, sites)),
        steps,
    )
    extra: list[MetricLogger] = (
        [TensorBoardLogger(Path(arguments.save_dir) / "tensorboard")] if arguments.tensorboard else []
    )
    dictionaries = trainSAE(
        buffer,
        trainer_configs,
        steps,
        save_dir=arguments.save_dir,
        save_steps=arguments.save_steps,
        log_steps=arguments.log_steps,
        run_cfg=arguments.to_dict(),
        normalize_activations=arguments.normalize_activations,
        use_wandb=arguments.wandb_project is not None,
        wandb_project=arguments.wandb_project or "",
        device=model.device,
        loggers=extra,
    )
    buffer.close()
    trained = time.monotonic()
    logger.info("Trained in %.0f s. Evaluating on %s.", trained - loaded, held_out.name)
    folders = [Path(arguments.save_dir) / f"trainer_{n}" for n in range(len(dictionaries))]
    candidates = [candidate_of(f, d, read_config_file(f)) for f, d in zip(folders, dictionaries, strict=True)]
    report = evaluate_dictionaries(
        model,
        candidates,
        held_out,
        EvaluationConfig(
            n_tokens=arguments.n_eval_tokens,
            n_fidelity_tokens=arguments.n_fidelity_tokens,
            ctx_len=arguments.ctx_len,
            pack=arguments.pack,
        ),
        token_filter=buffer.filter,
        norm_limits=buffer.norm_limits,
    )
    seconds = {"load": loaded - start, "train": trained - loaded, "evaluate": time.monotonic() - trained}
    return report_on(report, folders, Path(arguments.save_dir), seconds)
