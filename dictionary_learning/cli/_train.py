"""`dictionary-learning train`: from text to several trained dictionaries and their report."""

import argparse
import contextlib
import json
import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from dictionary_learning._plain import counted
from dictionary_learning._run_folder import OPTIONS, claim_run_folder, new_folder, point_latest_at
from dictionary_learning._said import saying
from dictionary_learning._shell_words import shown_command
from dictionary_learning._stop_request import interrupt_behind
from dictionary_learning.cli._arguments import add_config, config_parser, read_config
from dictionary_learning.cli._groups import ESSENTIAL
from dictionary_learning.cli._methods import (
    DEFAULT,
    FILLED_IN,
    Method,
    Methods,
    method_of,
    own_settings,
    trainers_of_options,
)
from dictionary_learning.cli._output import write_result
from dictionary_learning.cli._parser import Parser, option_of
from dictionary_learning.cli._run_file import text_of_run_file
from dictionary_learning.cli._stopping import (
    evaluating,
    finishing,
    saying_what_goes_on,
    showing,
    stamp_of,
    what_goes_on,
)
from dictionary_learning.cli._train_data import (
    adapted,
    evaluations,
    held_out,
    held_out_contexts,
    how_to_evaluate,
    make_source,
    make_source_apart,
)
from dictionary_learning.cli._train_options import TrainArguments, best_of, check_run, sized
from dictionary_learning.errors import ConfigError

if TYPE_CHECKING:
    from dictionary_learning.activations.cache import ActivationCache
    from dictionary_learning.buffer import ActivationBuffer
    from dictionary_learning.cli._evaluate import Written
    from dictionary_learning.contexts import ContextStream
    from dictionary_learning.data import Source
    from dictionary_learning.dictionaries import Dictionary
    from dictionary_learning.models import TracedModel
    from dictionary_learning.trainers import OptimizationConfig

    Activations: TypeAlias = ActivationBuffer | ActivationCache | ContextStream

logger = logging.getLogger(__name__)

_OF_TRAINING = (
    "save_steps", "log_steps", "checkpoint_steps", "keep_checkpoints", "normalize_activations", "overwrite",
    "on_anomaly", "patience", "verbose", "allow_changed", "evaluate_every", "placement", "save_format",
    "latent_ranks",
)  # fmt: skip
_NOT_SAVED = (
    "resume", "resume_from", "verbose", "overwrite", "dry_run", "allow_changed", "placement", "latent_ranks",
    "tracing_ranks",
)  # fmt: skip
_OF_THE_START = ("save_dir", "resume", "resume_from", "overwrite", "dry_run", "allow_changed")
"""Options that say how a run starts, and not which run it is."""
_RUNS = "runs"
_REPORT = "report.json"
_NOTHING_NEW = (
    "No step was made, and '%s' is on these dictionaries. To train on, give a larger --n-tokens with --resume "
    "--allow-changed steps warmup_steps decay_start; to evaluate again: %s"
)
_SEVERAL = (
    "For several on one stream, name them in a run file, as 'methods: {top_k: {k: 32}, gao_2024: {k: 64}}', and give "
    "it with --config; docs/command_line.md shows one. Several values of a setting, as --k 32 64, need no file."
)


def build_parser(arguments: Sequence[str], values: dict[str, Any] | None = None) -> Parser:
    """Returns the parser; its options depend on the trainer which the arguments name.

    Args:
        arguments: the words of the command.
        values: what a run file gives; the method is taken out, and the words go before it.

    Raises:
        ConfigError: the method is named in two ways, or is not known.
    """
    from dictionary_learning.trainers import TRAINERS
    from dictionary_learning.trainers.recipes import RECIPES

    values = {} if values is None else values
    choice = Parser("train", add_help=False)
    choice.add_argument(
        "--trainer",
        help=f"The method: {', '.join(sorted(TRAINERS))}; --help then shows its own settings. (default: {DEFAULT})",
    )
    choice.add_argument("--recipe", help=f"The settings of a paper, with its method: {', '.join(sorted(RECIPES))}.")
    chosen, others = choice.parse_known_args(arguments)
    for option, name, known in (("--trainer", chosen.trainer, TRAINERS), ("--recipe", chosen.recipe, RECIPES)):
        more = [word for word in others if word in known and not Path(word).exists()]
        is_twice = sum(word.partition("=")[0] == option for word in arguments) > 1
        if name is not None and (more or is_twice):
            got = f"Got {option} more than once" if is_twice else f"Got {option} {name} with {more[0]}"
            raise ConfigError(f"{got}, and it names one method. {_SEVERAL}")
    named = {name: values.pop(name, None) for name in ("trainer", "recipe")}
    for name, told in named.items():
        if told is not None and not isinstance(told, str):
            what = "no list: a run file trains several as 'methods'" if isinstance(told, list) else "it is no name"
            raise ConfigError(f"The run file has {name}: {told!r}, and {what}, as docs/sweeps.md shows.")
    if "methods" in values:
        return _parser_of_methods(values, choice, {name: getattr(chosen, name) or told for name, told in named.items()})
    if chosen.trainer is None and chosen.recipe is None:
        chosen = argparse.Namespace(**named)
    method = method_of(chosen.trainer, chosen.recipe)
    parser = config_parser("train", TrainArguments, parents=[choice])
    defaults = None if method.recipe is None else method.recipe()
    add_config(parser, method.trainer.Config, exclude=FILLED_IN, several=True, defaults=defaults)
    own = TRAINERS.name_of(method.trainer)
    for option, trainers in trainers_of_options().items():
        parser.elsewhere[option] = f"The trainer {own} has no {option}, which is an option of {', '.join(trainers)}."
    parser.set_defaults(run=lambda namespace: run(namespace, method))
    is_named = any(getattr(chosen, name) is not None for name in named)
    parser.show_only(own_settings(method.trainer) if is_named else ESSENTIAL)
    if is_named:
        parser.description = f"The settings of {method.name} itself; 'train --help' without it shows the usual ones."
    return parser


def _parser_of_methods(values: dict[str, Any], choice: Parser, named: Mapping[str, Any]) -> Parser:
    """Returns the parser for a run file that names methods, which it takes out."""
    if name := next((name for name, value in named.items() if value is not None), None):
        raise ConfigError(f"Got {option_of(name)} {named[name]} with a run file that has 'methods'. Give one of them.")
    methods, grid = values.pop("methods"), values.pop("grid", None) or {}
    for key, value in {"methods": methods, "grid": grid}.items():
        if not isinstance(value, Mapping):
            raise ConfigError(f"Got {key}: {value!r} in the run file; give a mapping, as docs/sweeps.md shows.")
    chosen = Methods(cast("Mapping[str, Any]", methods), cast("Mapping[str, Any]", grid))
    parser = config_parser("train", TrainArguments, parents=[choice])
    for option in trainers_of_options():
        parser.elsewhere[option] = f"The run file has 'methods': give {option} there, or for all of them in 'grid'."
    parser.set_defaults(run=lambda namespace: run(namespace, chosen))
    parser.show_only(ESSENTIAL)
    return parser


def run(namespace: argparse.Namespace, method: Method | Methods) -> int | None:
    """Runs the command; returns its exit status, where that is not 0."""
    from dictionary_learning.parallel import on_first, only_first_talks, refuse_several, start

    arguments = sized(read_config(namespace, TrainArguments))
    configs = method.configs(namespace)
    check_run(arguments, configs, namespace.given)
    if arguments.dry_run:
        refuse_several("--dry-run", "Start it without torchrun; 'dictionary-learning plan' is for several.")
    world = start()
    folder = arguments.save_dir or new_folder(_RUNS, Path(arguments.model or arguments.cache or "").name, method.name)
    folder = Path(world.share(folder))  # a new one has the time in its name
    if arguments.dry_run:
        return _train(arguments, folder, method, configs, namespace.given)
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_first_talks(world))
        before = stamp_of(folder)
        stack.enter_context(saying_what_goes_on(lambda: what_goes_on(arguments, folder, before)))
        # a run that is overwritten stays until all is loaded and training starts
        claim = claim_run_folder(folder, keep=arguments.overwrite or arguments.resume)
        on_first(world, lambda: stack.enter_context(claim))
        given = {name: getattr(namespace, name) for name in _kept(namespace, arguments)}
        token = OPTIONS.set(text_of_run_file("train", method.described(given)))
        stack.callback(OPTIONS.reset, token)
        arguments = saying(arguments.replace(save_dir=str(folder)), namespace.given)
        return _train(arguments, folder, method, configs, namespace.given)


def _kept(namespace: argparse.Namespace, arguments: TrainArguments) -> list[str]:
    """Returns the names of the options that a run file keeps."""
    places = [name for name in TrainArguments.positional if getattr(arguments, name) is not None]
    given = [name for name in vars(namespace) if name in namespace.given]
    return [*places, *(name for name in given if name not in (*places, *_OF_THE_START, "trainer", "recipe"))]


def _train(
    arguments: TrainArguments,
    save_dir: Path,
    method: Method | Methods,
    configs: "Sequence[OptimizationConfig]",
    given: Collection[str],
) -> int | None:
    """Trains, evaluates and reports, or shows the plan; a recipe adapts what was not given.

    Returns:
        The exit status: that of an error where a dictionary could not be saved in the folder.
    """
    import torch

    from dictionary_learning import parallel
    from dictionary_learning._assignment import joined
    from dictionary_learning._hardware import as_device
    from dictionary_learning._provenance import read_run
    from dictionary_learning._run_output import plan_of
    from dictionary_learning.cli._candidates import places_of
    from dictionary_learning.cli._dry_run import show_plan
    from dictionary_learning.loggers import TensorBoardLogger
    from dictionary_learning.training import trainSAE

    world, start = parallel.start(), time.monotonic()
    text = arguments.divided(arguments.data, arguments.held_out_every) if arguments.data is not None else None
    needs_model = arguments.cache is None or (arguments.evaluate_every is not None and text is not None)
    traces_apart = arguments.tracing_ranks is not None and not arguments.dry_run
    needs_model = needs_model and not traces_apart
    model = arguments.load(arguments.model) if arguments.model is not None and needs_model else None
    if traces_apart:
        assert text is not None
        source: Any = make_source_apart(arguments, text[0], configs, world)
    else:
        source = make_source(arguments, model, text[0] if text else None, configs)
    if method.recipe is not None and hasattr(source, "widths"):  # not where it is only traced
        configs = [adapted(config, source.widths, given) for config in configs]
    loaded = time.monotonic()
    steps = math.ceil(arguments.n_tokens / arguments.batch_size)  # at least one
    device = arguments.device or getattr(model, "device", None)
    if arguments.dry_run:
        periods = {"evaluate_every": arguments.evaluate_every, "save_best": best_of(arguments.save_best)}
        plan = plan_of(steps, arguments.log_steps, arguments.checkpoint_steps, None, arguments.save_steps, **periods)
        options = arguments.options("normalize_activations", "keep_checkpoints")
        if text is not None and arguments.model is not None:
            model = model or arguments.load(arguments.model)
            options |= {"model": model, "evaluations": evaluations(arguments, source, steps)}
        show_plan(source, configs, plan, as_device(device), save_dir, **options)
        return 0
    # a report of a run that is overwritten is none of this one
    reported = _step_of_report(save_dir) if arguments.resume or arguments.resume_from else None
    if world.is_first:
        logger.info("Training on %s: %s.", joined(source.sites), counted(steps, "step"))
    dictionaries = trainSAE(
        source,
        configs,
        steps,
        save_dir=save_dir,
        # a run that was resumed leaves the same files as one that was not
        run_cfg={name: value for name, value in arguments.to_dict().items() if name not in _NOT_SAVED},
        resume=arguments.resume_from or ("auto" if arguments.resume else "never"),
        save_best=best_of(arguments.save_best),
        use_wandb=arguments.wandb_project is not None,
        wandb_project=arguments.wandb_project or "",
        wandb_entity=arguments.wandb_entity or "",
        autocast_dtype=getattr(torch, arguments.autocast_dtype),
        device=device,
        loggers=[TensorBoardLogger(save_dir / "tensorboard")] if arguments.tensorboard and world.is_first else [],
        **held_out(arguments, model, text[1] if text else None, source),
        **arguments.options(*_OF_TRAINING),
    )
    if not world.is_first:
        return 0
    places = places_of(save_dir, dictionaries)
    status = _say_what_is_elsewhere(save_dir, places)
    elsewhere = [place for place in places if place is not None] if status else []
    source.close()  # returns the memory of the rows before the evaluation needs it
    if save_dir.parent == Path(_RUNS):
        point_latest_at(save_dir)
    end = time.monotonic()
    if reported is not None and reported == read_run(save_dir)["volatile"]["sessions"][-1]["last_step"]:
        again = shown_command(evaluating(save_dir, arguments))
        again = again if arguments.save_format == "own" else "remove that file, and repeat this command."
        logger.info(_NOTHING_NEW, save_dir / _REPORT, again)
        _show_report(save_dir)
        return status
    if text is None or arguments.model is None:
        words = evaluating(save_dir, arguments.replace(model=None), elsewhere)
        asked = shown_command([*words, "--model", "MODEL", "--data", "DATA"])
        logger.info("Trained in %.0f s. Evaluate with: %s", end - loaded, asked)
        return status
    told = "" if "n_eval_tokens" in given else " (--n-eval-tokens says another number)"
    on = f"{counted(arguments.n_eval_tokens or 0, 'token')}{told} of {text[1].name}"
    logger.info("Trained in %.0f s. Evaluating on %s.", end - loaded, on)
    seconds = {"load": loaded - start, "train": end - loaded}
    try:
        model = model or arguments.load(arguments.model)
        written = _evaluate(arguments, model, dictionaries, text[1], source, save_dir, seconds)
    except Exception as error:  # what was trained is saved, and no failure of a run
        if interrupt_behind(error):
            raise
        there = " and ".join(f"'{place}'" for place in elsewhere or ([] if status else [save_dir]))
        command = shown_command(finishing(save_dir, arguments, elsewhere))
        again = f"The dictionaries are saved in {there}. Evaluate them with: {command}" if there else ""
        logger.warning("The evaluation failed (%s: %s). %s", type(error).__name__, error, again)
        return status
    written.show()
    if not status and arguments.save_format == "own":  # others' files do not say what was read
        logger.info("Pages of their latents: %s", shown_command(showing(save_dir, arguments)))
    return status


def _say_what_is_elsewhere(save_dir: Path, places: "Sequence[Path | None]") -> int:
    """Says which dictionaries are not in the folder; returns the exit status."""
    own = [save_dir / f"trainer_{number}" for number in range(len(places))]
    moved = {one.name: place for one, place in zip(own, places, strict=True) if place != one}
    if moved:
        where = {name: f"in '{place}'" if place else "nowhere" for name, place in moved.items()}
        told = "; ".join(f"{name} is {there}" for name, there in where.items())
        logger.error("Not all dictionaries are in '%s': %s. Make room, and move them there.", save_dir, told)
    return 2 if moved else 0


def _show_report(save_dir: Path) -> None:
    """Prints what the evaluation printed that wrote the report of a run."""
    report, page = json.loads((save_dir / _REPORT).read_text(encoding="utf-8")), str(save_dir / "report.html")
    found = [
        {"name": one["name"], "site": one["site"], "folder": str(save_dir / f"trainer_{n}"), "metrics": one["metrics"]}
        | ({"convention_metrics": one["convention_metrics"]} if one.get("convention_metrics") else {})
        for n, one in enumerate(report["dictionaries"])
    ]
    write_result({"report": page, "dictionaries": found}, [page])


def _step_of_report(save_dir: Path) -> int | None:
    """Returns the step whose dictionaries the report of a run is on; None without such a report."""
    try:
        report = json.loads((save_dir / _REPORT).read_text(encoding="utf-8"))
        (step,) = {one["history"][-1]["step"] for one in report["dictionaries"]}
        return step
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _evaluate(
    arguments: TrainArguments,
    model: "TracedModel",
    dictionaries: "Sequence[Dictionary]",
    text: "Source",
    source: "Activations",
    save_dir: Path,
    seconds: Mapping[str, float],
) -> "Written":
    """Evaluates what was trained on the text that was held out, and writes the report."""
    from dictionary_learning.cli._candidates import candidates_of, trained
    from dictionary_learning.cli._evaluate import report_on
    from dictionary_learning.evaluation import evaluate_dictionaries

    start = time.monotonic()
    saved = trained(save_dir, dictionaries)
    report = evaluate_dictionaries(
        model,
        candidates_of(saved, model),
        held_out_contexts(arguments, text, model, source),
        how_to_evaluate(arguments, source),
        token_filter=source.filter,
        norm_limits=source.norm_limits,
    )
    return report_on(report, saved, save_dir, {**seconds, "evaluate": time.monotonic() - start})
