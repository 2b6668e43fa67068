"""`dictionary-learning train`: from text to several trained dictionaries and their report."""

import argparse
import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from dictionary_learning._run_folder import claim_run_folder, new_folder, point_latest_at
from dictionary_learning.cli._arguments import Parser, add_config, config_parser, option_of, read_config, read_configs
from dictionary_learning.cli._train_data import adapted, held_out, how_to_evaluate, make_source
from dictionary_learning.cli._train_options import TrainArguments, check_run
from dictionary_learning.errors import ConfigError

if TYPE_CHECKING:
    from dictionary_learning.activations.cache import ActivationCache
    from dictionary_learning.buffer import ActivationBuffer
    from dictionary_learning.contexts import ContextStream
    from dictionary_learning.data import Source
    from dictionary_learning.dictionaries import Dictionary
    from dictionary_learning.models import TracedModel
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
    "on_anomaly", "patience", "allow_changed", "evaluate_every", "save_best", "placement", "save_format",
)  # fmt: skip
_NOT_SAVED = ("resume", "overwrite", "dry_run", "allow_changed", "placement")
_TRAINER = "top_k"
_RUNS = "runs"


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
    from dictionary_learning.parallel import on_first, only_first_talks, refuse_several, start

    arguments = read_config(namespace, TrainArguments)
    # the recipe gets the options, as in Python: it may derive others from them
    configs = read_configs(namespace, method.trainer.Config, method.recipe)
    check_run(arguments, configs, namespace.given)
    if arguments.dry_run:
        refuse_several("--dry-run", "Start it without torchrun; 'dictionary-learning plan' is for several.")
    world = start()
    folder = arguments.save_dir or new_folder(_RUNS, Path(arguments.model or arguments.cache or "").name, method.name)
    folder = Path(world.share(folder))  # a new one has the time in its name
    if arguments.dry_run:
        _train(arguments, folder, method, configs, namespace.given)
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_first_talks(world))
        # a run that is overwritten stays until all is loaded and training starts
        claim = claim_run_folder(folder, keep=arguments.overwrite or arguments.resume)
        on_first(world, lambda: stack.enter_context(claim))
        _train(arguments.replace(save_dir=str(folder)), folder, method, configs, namespace.given)


def _train(
    arguments: TrainArguments,
    save_dir: Path,
    method: Method,
    configs: "Sequence[OptimizationConfig]",
    given: Collection[str],
) -> None:
    """Trains, evaluates and reports, or shows the plan; a recipe adapts what was not given."""
    from dictionary_learning import parallel
    from dictionary_learning._hardware import as_device
    from dictionary_learning._run_output import plan_of
    from dictionary_learning.cli._dry_run import show_plan
    from dictionary_learning.loggers import TensorBoardLogger
    from dictionary_learning.training import trainSAE

    world, start = parallel.start(), time.monotonic()
    text = arguments.divided(arguments.data, arguments.held_out_every) if arguments.data is not None else None
    needs_model = arguments.cache is None or (arguments.evaluate_every is not None and text is not None)
    model = arguments.load(arguments.model) if arguments.model is not None and needs_model else None
    source = make_source(arguments, model, text[0] if text else None, configs)
    if method.recipe is not None:
        configs = [adapted(config, source.widths, given) for config in configs]
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
        loggers=[TensorBoardLogger(save_dir / "tensorboard")] if arguments.tensorboard and world.is_first else [],
        **held_out(arguments, model, text[1] if text else None, source),
        **arguments.options(*_OF_TRAINING),
    )
    if not world.is_first:
        return
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
