"""`dictionary-learning train`: from text to several trained dictionaries and their report."""

import argparse
import dataclasses
import importlib.util
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias

from dictionary_learning._run_folder import claim_run_folder, new_folder, point_latest_at
from dictionary_learning.cli._arguments import Parser, add_config, config_parser, option_of, read_config, read_configs
from dictionary_learning.cli._options import CaptureArguments
from dictionary_learning.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from dictionary_learning.activations.cache import ActivationCache
    from dictionary_learning.buffer import ActivationBuffer
    from dictionary_learning.contexts import ContextStream
    from dictionary_learning.data import Source
    from dictionary_learning.dictionaries import Dictionary
    from dictionary_learning.evaluation import EvaluationConfig
    from dictionary_learning.models import TracedModel
    from dictionary_learning.sites import Site
    from dictionary_learning.trainers import OptimizationConfig, Trainer

    Activations: TypeAlias = ActivationBuffer | ActivationCache | ContextStream

logger = logging.getLogger(__name__)

FILLED_IN = (
    "activation_dim", "steps", "site", "target_site", "site_dims", "output_dims", "device", "layer", "lm_name",
    "submodule_name", "wandb_name", "dict_class",
)  # fmt: skip
"""Settings of a trainer that the run decides."""
_OF_TRAINING = (
    "save_steps", "log_steps", "checkpoint_steps", "keep_checkpoints", "normalize_activations", "overwrite",
    "on_anomaly", "patience", "allow_changed", "evaluate_every", "save_best",
)  # fmt: skip
_OF_A_CACHE = (
    "io", "layers", "layer_stride", "ctx_len", "refresh_batch_size", "remove_bos", "seqpos_slice",
    "max_activation_norm_multiple", "pack", "prefetch", "retrace", "n_ctxs", "storage_dtype", "max_examples",
    "shuffle_seed",
)  # fmt: skip
"""Options that were decided when a cache was written."""
_NOT_SAVED = ("resume", "overwrite", "dry_run", "allow_changed")
_TRAINER = "top_k"
_RUNS = "runs"
_LATENTS_PER_K = 8
"""A recipe's k is lowered to this share of the latents, where activations are narrow."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainArguments(CaptureArguments):
    """Trains dictionaries on a language model's activations, and evaluates them on held-out text.

    Writes a report and prints the path of its page. Options of the trainer take several values
    each; a dictionary is trained for every combination, on every site.
    """

    positional: ClassVar = ("model", "data")
    model: str | None = None
    """The language model: a name on the Hugging Face hub, a local folder, or a GGUF file. With
    --cache it is loaded after training, to evaluate, and may be omitted."""
    data: str | None = None
    """The data: a file (.txt, .jsonl, .parquet, .npy and others), a folder or pattern of files, or
    a data set on the hub."""
    cache: str | None = None
    """Trains on a cache that `dictionary-learning cache` wrote, without a language model."""
    save_dir: str | None = None
    """The folder for the dictionaries, the metrics and the report; by default a new one,
    runs/<date>-<time>-<model>-<method>, which runs/latest then links to."""
    overwrite: bool = False
    """Whether the run that the folder holds is removed first."""
    checkpoint_steps: int | None = None
    """Steps between two checkpoints of the whole run, from which it resumes to the same bits.
    One is also written when Ctrl-C or SIGTERM stops the run."""
    keep_checkpoints: int = 2
    """The number of newest checkpoints that stay; those of --save-steps stay too."""
    resume: bool = False
    """Whether the run in --save-dir goes on from its newest checkpoint, with the same options."""
    allow_changed: tuple[str, ...] = ()
    """Settings that may differ from those of the checkpoint: steps warmup_steps decay_start to
    train longer."""
    dry_run: bool = False
    """Whether only the plan is shown: tokens, steps, memory, disk and time, of which a forward pass
    and a few steps are measured. Nothing is written."""
    n_tokens: int = 1_000_000
    """Tokens to train on."""
    batch_size: int = 2048
    """Tokens in a training step: tokens, not sequences."""
    n_ctxs: int = 1024
    """Contexts in the shuffle buffer."""
    storage_dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = None
    """The type of the rows in the shuffle buffer; by default the model's dtype."""
    end_of_data: Literal["stop", "repeat", "error"] = "repeat"
    """What happens when the data ends."""
    retrace: bool = False
    """Whether a checkpoint names the rows in the buffer instead of holding them: it is small, and
    the model reads their contexts again when the run resumes."""
    normalize_activations: bool = False
    """Whether activations are scaled to unit mean squared norm in training."""
    n_eval_tokens: int = 32_768
    """Tokens to evaluate the dictionaries on."""
    n_fidelity_tokens: int = 8_192
    """Tokens on which cross-entropy is measured, with each dictionary spliced in."""
    log_steps: int | None = None
    """Steps between two entries of the log; by default 100 entries."""
    save_steps: tuple[int, ...] = ()
    """Steps after which the dictionaries are saved too."""
    on_anomaly: Literal["skip", "stop", "rollback"] = "skip"
    """What follows on values that are not finite, and on a loss above --max-loss-ratio: such tokens
    and steps are left out; the run stops; or it returns to its newest checkpoint."""
    patience: int | None = None
    """Entries of the log, one after another, in which no dictionary's FVU becomes 1 % better, after
    which the run ends. There are 100 entries unless --log-steps says otherwise."""
    evaluate_every: int | None = None
    """Steps between two evaluations on the held-out documents while training, which changes no bit
    of the dictionaries; --n-eval-tokens and --n-fidelity-tokens say on how many tokens."""
    save_best: str | None = None
    """The metric by which the best dictionary so far is kept, in trainer_N/best: fvu,
    ce_recovered_zero, kl and others of the report; needs --evaluate-every."""
    wandb_project: str | None = None
    """Logs to this project on Weights & Biases."""
    tensorboard: bool = False
    """Whether metrics are also written for TensorBoard, into the folder's tensorboard/."""


class Method(NamedTuple):
    """What is trained: a trainer, and the recipe if one was chosen."""

    name: str
    trainer: "type[Trainer]"
    recipe: "Callable[..., OptimizationConfig] | None" = None


def build_parser(arguments: Sequence[str]) -> Parser:
    """Returns the parser; its options depend on the trainer which the arguments name."""
    from dictionary_learning.trainers import TRAINERS
    from dictionary_learning.trainers.recipes import RECIPES

    choice = Parser("train", add_help=False)
    choice.add_argument(
        "--trainer",
        help=f"The method: {', '.join(sorted(TRAINERS))}; with --help, its options are shown. (default: {_TRAINER})",
    )
    choice.add_argument("--recipe", help=f"The settings of a paper, with its method: {', '.join(sorted(RECIPES))}.")
    chosen, others = choice.parse_known_args(arguments)
    more = [word for word in others if word in TRAINERS and not Path(word).exists()]
    if chosen.trainer is not None and more:
        raise ConfigError(
            f"Got --trainer {chosen.trainer} with {more[0]}. A command trains one method: give the others commands of "
            "their own, with --seed and --save-dir, or train them together by trainSAE."
        )
    method = method_of(chosen.trainer, chosen.recipe)
    parser = config_parser("train", TrainArguments, parents=[choice])
    defaults = None if method.recipe is None else method.recipe()
    add_config(parser, method.trainer.Config, exclude=FILLED_IN, several=True, defaults=defaults)
    trainers_of: dict[str, list[str]] = {}
    for name, trainer in TRAINERS.items():
        for field in dataclasses.fields(trainer.Config):
            if field.name not in FILLED_IN:
                trainers_of.setdefault(option_of(field.name), []).append(name)
    own = TRAINERS.name_of(method.trainer)
    for option, trainers in trainers_of.items():
        parser.elsewhere[option] = f"The trainer {own} has no {option}, which is an option of {', '.join(trainers)}."
    parser.set_defaults(run=lambda namespace: run(namespace, method))
    return parser


def method_of(trainer: str | None, recipe: str | None) -> Method:
    """Returns the method that is named.

    Raises:
        ConfigError: a name is not known, or the recipe is one of another trainer.
    """
    from dictionary_learning.trainers import TRAINERS
    from dictionary_learning.trainers.recipes import RECIPES

    if recipe is None:
        name = _TRAINER if trainer is None else trainer
        return Method(name, TRAINERS[name])
    config = RECIPES[recipe]()
    if trainer is not None and TRAINERS[trainer] is not config.trainer_class:
        own = TRAINERS.name_of(config.trainer_class)
        raise ConfigError(
            f"Got --trainer {trainer} with --recipe {recipe}, which is one of {own}. Give one of the two."
        )
    return Method(recipe, config.trainer_class, RECIPES[recipe])


def run(namespace: argparse.Namespace, method: Method) -> None:
    """Runs the command."""
    arguments = read_config(namespace, TrainArguments)
    # the recipe gets the options, as in Python: it may derive others from them
    configs = read_configs(namespace, method.trainer.Config, method.recipe)
    check_run(arguments, configs, namespace.given)
    folder = arguments.save_dir or new_folder(_RUNS, Path(arguments.model or arguments.cache or "").name, method.name)
    if arguments.dry_run:
        _train(arguments, Path(folder), method, configs, namespace.given)
        return
    # a run that is overwritten stays until all is loaded and training starts
    with claim_run_folder(folder, keep=arguments.overwrite or arguments.resume) as save_dir:
        _train(arguments.replace(save_dir=str(save_dir)), save_dir, method, configs, namespace.given)


def _train(
    arguments: TrainArguments,
    save_dir: Path,
    method: Method,
    configs: "Sequence[OptimizationConfig]",
    given: Collection[str],
) -> None:
    """Trains, evaluates and reports, or shows the plan; a recipe adapts what was not given."""
    from dictionary_learning._hardware import as_device
    from dictionary_learning._run_output import plan_of
    from dictionary_learning.cli._dry_run import show_plan
    from dictionary_learning.loggers import TensorBoardLogger
    from dictionary_learning.training import trainSAE

    start = time.monotonic()
    text = arguments.divided(arguments.data, arguments.held_out_every) if arguments.data is not None else None
    needs_model = arguments.cache is None or (arguments.evaluate_every is not None and text is not None)
    model = arguments.load(arguments.model) if arguments.model is not None and needs_model else None
    source = make_source(arguments, model, text[0] if text else None, configs)
    if method.recipe is not None:
        configs = [_adapted(config, source.widths, given) for config in configs]
    loaded = time.monotonic()
    steps = math.ceil(arguments.n_tokens / arguments.batch_size)  # at least one
    device = arguments.device or getattr(model, "device", None)
    if arguments.dry_run:
        periods = {"evaluate_every": arguments.evaluate_every, "save_best": arguments.save_best}
        plan = plan_of(steps, arguments.log_steps, arguments.checkpoint_steps, None, arguments.save_steps, **periods)
        options = arguments.options("normalize_activations", "keep_checkpoints")
        show_plan(source, configs, plan, as_device(device), save_dir, **options)
        return
    logger.info("Training on %s: %d steps.", ", ".join(map(str, source.sites)), steps)
    dictionaries = trainSAE(
        source,
        configs,
        steps,
        save_dir=save_dir,
        # a run that was resumed leaves the same files as one that was not
        run_cfg={name: value for name, value in arguments.to_dict().items() if name not in _NOT_SAVED},
        resume="auto" if arguments.resume else "never",
        use_wandb=arguments.wandb_project is not None,
        wandb_project=arguments.wandb_project or "",
        device=device,
        loggers=[TensorBoardLogger(save_dir / "tensorboard")] if arguments.tensorboard else [],
        **_held_out(arguments, model, text[1] if text else None, source),
        **arguments.options(*_OF_TRAINING),
    )
    source.close()  # returns the memory of the rows before the evaluation needs it
    if save_dir.parent == Path(_RUNS):
        point_latest_at(save_dir)
    end = time.monotonic()
    if text is None or arguments.model is None:
        advice = "Trained in %.0f s. Evaluate with: dictionary-learning evaluate %s --model MODEL --data DATA"
        logger.info(advice, end - loaded, save_dir)
        return
    logger.info("Trained in %.0f s. Evaluating on %s.", end - loaded, text[1].name)
    seconds = {"load": loaded - start, "train": end - loaded}
    try:
        _evaluate(arguments, model or arguments.load(arguments.model), dictionaries, text[1], source, save_dir, seconds)
    except Exception as error:  # noqa: BLE001  (what was trained is saved, and no failure of a run)
        logger.warning(
            "The evaluation failed (%s: %s). The dictionaries are in '%s'. Try again with: dictionary-learning "
            "evaluate %s", type(error).__name__, error, save_dir, save_dir,
        )  # fmt: skip


def _evaluate(
    arguments: TrainArguments,
    model: "TracedModel",
    dictionaries: "Sequence[Dictionary]",
    text: "Source",
    source: "Activations",
    save_dir: Path,
    seconds: Mapping[str, float],
) -> None:
    """Evaluates what was trained on the text that was held out, and writes the report."""
    from dictionary_learning.cli._candidates import candidates_of, trained
    from dictionary_learning.cli._evaluate import report_on
    from dictionary_learning.evaluation import evaluate_dictionaries

    start = time.monotonic()
    saved = trained(save_dir, dictionaries)
    report = evaluate_dictionaries(
        model,
        candidates_of(saved, model),
        text,
        how_to_evaluate(arguments, source),
        token_filter=source.filter,
        norm_limits=source.norm_limits,
    )
    report_on(report, saved, save_dir, {**seconds, "evaluate": time.monotonic() - start})


def _held_out(
    arguments: TrainArguments, model: "TracedModel | None", text: "Source | None", source: "Activations"
) -> dict[str, Any]:
    """Returns the arguments of `trainSAE` about evaluation while it trains."""
    from dictionary_learning._held_out import IN_TRAINING
    from dictionary_learning.contexts import ContextStream

    if arguments.evaluate_every is None:
        return {}
    config = how_to_evaluate(arguments, source).replace(**IN_TRAINING)
    data: Any = text
    if arguments.cache is not None and text is not None and model is not None:
        reading = {"ctx_len": config.ctx_len, "pack": config.pack}
        data = ContextStream(text, model, list(source.sites), **reading)  # a cache has no model
    return {"evaluation_data": data, "evaluation": config}


def how_to_evaluate(arguments: TrainArguments, source: "Activations") -> "EvaluationConfig":
    """Returns how much held-out text is read, in contexts as in training."""
    from dictionary_learning.evaluation import EvaluationConfig

    return EvaluationConfig(
        n_tokens=arguments.n_eval_tokens,
        n_fidelity_tokens=arguments.n_fidelity_tokens,
        ctx_len=source.config["ctx_len"],
        pack=source.config["pack"],
    )


def check_run(arguments: TrainArguments, configs: "Sequence[OptimizationConfig]", given: Collection[str]) -> None:
    """Refuses what cannot be trained, before anything is loaded.

    Raises:
        ConfigError: there are no activations to train on, or batches are too small for the method.
    """
    if arguments.wandb_project is not None and importlib.util.find_spec("wandb") is None:
        raise MissingDependencyError("wandb", "--wandb-project", "wandb")
    arguments.check_sites()
    needs_contexts = any(config.needs_contexts for config in configs)
    if arguments.resume and (arguments.save_dir is None or arguments.overwrite):
        raise ConfigError("--resume needs the folder of the run: give --save-dir, and no --overwrite.")
    if arguments.cache is None and (arguments.model is None or arguments.data is None):
        raise ConfigError(
            "Give a model and data to train on, as 'train MODEL DATA', or a cache, as 'train --cache FOLDER'."
        )
    if arguments.evaluate_every is not None and (arguments.model is None or arguments.data is None):
        raise ConfigError(
            "--evaluate-every splices dictionaries into a model that reads held-out text: give MODEL DATA."
        )
    if arguments.save_best is not None and arguments.evaluate_every is None:
        raise ConfigError("--save-best is decided by evaluations: give --evaluate-every too.")
    if arguments.cache is not None and needs_contexts:
        raise ConfigError("This method trains on whole contexts, with the model, and a cache has none. Omit --cache.")
    decided = [option_of(name) for name in _OF_A_CACHE if name in given]
    if arguments.cache is not None and decided:
        raise ConfigError(
            f"Got {', '.join(decided)} with --cache: the cache was written with settings of its own, and knows sites "
            "but no layers. Leave them out, choose by --sites, or write another cache."
        )
    k = max((getattr(config, "k", None) or 1) if "k" in given else 1 for config in configs)
    least, what = max((1 if arguments.cache else arguments.ctx_len, "one context"), (k, f"k={k}"))
    size = arguments.batch_size
    if size < least:
        raise ConfigError(
            f"Got --batch-size {size}; a training step needs at least {least} tokens ({what}). The batch size counts "
            f"tokens, not sequences as in sparsify: {size} sequences are --batch-size {size * arguments.ctx_len}."
        )


def make_source(
    arguments: TrainArguments,
    model: "TracedModel | None",
    text: "Source | None",
    configs: "Sequence[OptimizationConfig]",
) -> "Activations":
    """Returns a cache, a buffer over the model, or whole contexts where a method needs them."""
    from dictionary_learning.activations.cache import ActivationCache
    from dictionary_learning.buffer import ActivationBuffer
    from dictionary_learning.contexts import ContextStream
    from dictionary_learning.dictionaries import WIRINGS

    size = arguments.batch_size
    # the dictionaries share one order of the rows, which the first seed decides
    seed = next((config.seed for config in configs if config.seed is not None), 0)
    if arguments.cache is not None:
        options = {**arguments.options("end_of_data", "model"), "seed": seed}
        return ActivationCache(arguments.cache, list(arguments.sites) or None, out_batch_size=size, **options)
    assert model is not None and text is not None
    wirings = {getattr(config, "wiring", None) or "autoencoder" for config in configs}
    sites = arguments.sites_of(model, predicts=any(WIRINGS[name].writes_others for name in wirings))
    if any(config.needs_contexts for config in configs):
        logger.info("Contexts stay whole: options of the shuffle buffer, token norms and positions have no effect.")
        return ContextStream(
            text,
            model,
            sites,
            batch_size=size // arguments.ctx_len,
            predict=any(config.needs_predictions for config in configs),
            **arguments.options("ctx_len", "remove_bos", "pack", "end_of_data"),
        )
    options = {**arguments.options("n_ctxs", "end_of_data", "retrace"), **arguments.reading, "seed": seed}
    return ActivationBuffer(text, model, sites, out_batch_size=size, dtype=arguments.storage_dtype, **options)


def _adapted(config: Any, widths: "Mapping[Site, int]", given: Collection[str]) -> Any:
    """Returns a recipe's config with as many latents as these activations can carry, unless given.

    The width of a dictionary that reads several sites is their sum, and its size would grow with
    the square of their number. Here a crosscoder gets as many latents as an autoencoder of its
    widest site, and a cross-layer transcoder at least one per dimension of each layer.
    """
    from dictionary_learning.dictionaries import WIRINGS

    changes: dict[str, int] = {}
    wiring, factor = WIRINGS[getattr(config, "wiring", None) or "autoencoder"], config.expansion_factor
    reads = [width for site, width in widths.items() if site.side == "in" or not wiring.writes_others]
    size = config.dict_size or factor * max(reads)
    if wiring.reads_several and not {"dict_size", "expansion_factor"} & set(given):
        size = max(reads) * (max(1, factor // len(reads)) * len(reads) if wiring.writes_others else factor)
        changes["dict_size"] = size
    k = getattr(config, "k", None)
    if k is not None and "k" not in given and k > size // _LATENTS_PER_K:
        changes["k"] = max(1, size // _LATENTS_PER_K)
    if changes:
        shown = ", ".join(f"{name}={value}" for name, value in changes.items())
        logger.info("The recipe is adapted to activations of width %d: %s.", max(reads), shown)
    if {"dict_size", "finetune"} & set(given) and "expansion_factor" not in given:
        changes["expansion_factor"] = type(config)().expansion_factor  # the recipe's would contradict the size
    return config.replace(**changes)
