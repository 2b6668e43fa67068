"""`dictionary-learning evaluate`: a report on dictionaries that were trained before."""

import argparse
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dictionary_learning.activations.filters import TokenFilter
from dictionary_learning.cli.arguments import add_config, read_config
from dictionary_learning.cli.data_options import DataArguments, data_arguments
from dictionary_learning.dictionaries import Dictionary, load_dictionary
from dictionary_learning.dictionaries.serialization import CONFIG, read_config_file, versions
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.evaluation import Candidate, EvaluationConfig, evaluate_dictionaries
from dictionary_learning.evaluation.reports import write_report
from dictionary_learning.loggers import read_history
from dictionary_learning.models import load_model
from dictionary_learning.sites import Site, natural_key

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateArguments(DataArguments):
    """What to evaluate, and on what. What is not given is as it was in training."""

    dictionaries: tuple[str, ...]
    """Folders of dictionaries, or of whole runs."""
    model: str | None = None
    """The language model; by default the one that they were trained on."""
    data: str | None = None
    """The text; by default the documents that were held out in training."""
    save_dir: str | None = None
    """The folder for the report; by default the first of the folders given."""
    n_tokens: int = 32_768
    """Tokens to evaluate on."""
    n_fidelity_tokens: int = 8_192
    """Tokens on which cross-entropy is measured; 0 for none."""
    batch_size: int = 8
    """Contexts in a forward pass."""
    dtype: str | None = None
    """The model's dtype; bfloat16 where the hardware is fast at it, else float32."""
    device: str | None = None
    """Where everything runs; the accelerator if there is one."""


def add_parser(commands: argparse._SubParsersAction, arguments: list[str]) -> None:
    """Adds the command."""
    about = "Evaluates saved dictionaries on held-out text and writes a report."
    parser = commands.add_parser("evaluate", help="evaluate saved dictionaries", description=about)
    add_config(parser, EvaluateArguments, positional=("dictionaries",))
    parser.set_defaults(run=lambda namespace: evaluate(read_config(namespace, EvaluateArguments)))


def evaluate(arguments: EvaluateArguments) -> Path:
    """Evaluates and reports; returns the path of the report's page."""
    folders = [folder for given in arguments.dictionaries for folder in dictionary_folders(given)]
    loaded = [load_dictionary(folder) for folder in folders]
    first = loaded[0][1]
    for folder, (_, config) in zip(folders, loaded, strict=True):
        if config.get("buffer", {}).get("filter") != first.get("buffer", {}).get("filter"):
            raise ConfigError(
                f"'{folder}' was trained with another token filter than '{folders[0]}'. Evaluate them apart."
            )
    buffer = first.get("buffer", {})
    trained = _run_of(first)
    name = arguments.model or trained.get("model") or buffer.get("model", {}).get("name")
    if name is None:
        raise ConfigError(f"'{folders[0]}' does not say which model it was trained on. Give --model.")
    revision = trained.get("revision") if arguments.model is None else None
    model = load_model(name, device=arguments.device, dtype=arguments.dtype, revision=revision)
    model.check_trained_on(buffer.get("model", {}))
    rule = dict(buffer.get("filter", {}))
    limits = {Site.parse(site): limit for site, limit in rule.pop("norm_limits", {}).items()}
    report = evaluate_dictionaries(
        model,
        [candidate_of(folder, *pair) for folder, pair in zip(folders, loaded, strict=True)],
        _text(arguments, first),
        EvaluationConfig(
            n_tokens=arguments.n_tokens,
            n_fidelity_tokens=arguments.n_fidelity_tokens,
            ctx_len=buffer.get("ctx_len", 128),
            batch_size=arguments.batch_size,
            pack=buffer.get("pack", True),
        ),
        token_filter=TokenFilter.from_dict(rule) if rule else None,
        norm_limits=limits,
    )
    return report_on(report, folders, Path(arguments.save_dir or arguments.dictionaries[0]), {})


def report_on(report: dict[str, Any], folders: list[Path], save_dir: Path, seconds: Mapping[str, float]) -> Path:
    """Adds settings and training history to a report, writes it, and says what it found."""
    report = {
        "title": f"Dictionaries of {report['model']['name']}",
        **report,
        "versions": versions(),
        "seconds": dict(seconds),
    }
    for entry, folder in zip(report["dictionaries"], folders, strict=True):
        config = read_config_file(folder)
        entry["config"] = config.get("trainer", {})
        history = folder.parent / "metrics.jsonl"
        entry["history"] = read_history(history, config["name"]) if history.is_file() and "name" in config else []
    written = write_report(report, save_dir)
    for entry in report["dictionaries"]:
        figures = entry["metrics"]
        shown = [f"FVU {figures['fvu']:.4f}", f"L0 {figures['l0']:.1f}"]
        if "ce_recovered_zero" in figures:
            shown.append(f"CE recovered {figures['ce_recovered_zero']:.4f}")
        logger.info("%s: %s", entry["name"], "  ".join(shown))
    logger.info("The report is in %s", written["html"])
    return written["html"]


def dictionary_folders(path: str) -> list[Path]:
    """Returns the folders of the dictionaries at a path: itself, or those of a whole run.

    Raises:
        CheckpointError: there is none.
    """
    folder = Path(path)
    if (folder / CONFIG).is_file():
        return [folder]
    found = sorted((p.parent for p in folder.glob(f"*/{CONFIG}")), key=lambda p: natural_key(p.name))
    if not found:
        raise CheckpointError(
            f"There is no dictionary in '{folder}'. Give the folder of a dictionary, or of a run with trainer_0 in it."
        )
    return found


def candidate_of(folder: Path, dictionary: Dictionary, config: Mapping[str, Any]) -> Candidate:
    """Returns a dictionary with the sites that its config says it belongs to.

    Raises:
        CheckpointError: the config names no site.
    """
    if "site" not in config:
        raise CheckpointError(f"'{folder / CONFIG}' does not say at which site the dictionary belongs.")
    target = config.get("target_site")
    return Candidate(
        config.get("name", folder.name), dictionary, _sites(config["site"]), None if target is None else _sites(target)
    )


def _sites(named: str | list[str]) -> Site | tuple[Site, ...]:
    return Site.parse(named) if isinstance(named, str) else tuple(Site.parse(site) for site in named)


def _run_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the settings of the run that read the text: of the training, or of the writing of its cache."""
    own = config.get("run", {})
    return own if own.get("data") else config.get("buffer", {}).get("run", own)


def _text(arguments: EvaluateArguments, config: Mapping[str, Any]) -> Any:
    trained = _run_of(config)
    data = arguments.data or trained.get("data")
    if data is None:
        raise ConfigError("The dictionaries do not say which text they were trained on. Give --data.")
    asked, reading = data_arguments(arguments.to_dict()), data_arguments(trained)
    if data != trained.get("data"):
        return arguments.source(data)
    if asked not in (DataArguments(), reading):
        if asked.split == reading.split:
            logger.warning("The data is not read as in training; documents that were trained on may be evaluated on.")
        return arguments.source(data)
    # as in training: read otherwise, other documents would be held out, and those trained on among them
    every = trained.get("held_out_every")
    return reading.divided(data, every)[1] if every else reading.source(data)
