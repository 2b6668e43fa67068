"""`dictionary-learning evaluate`: a report on dictionaries that were trained before."""

import argparse
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dictionary_learning.activations.filters import TokenFilter
from dictionary_learning.cli.arguments import add_config, read_config
from dictionary_learning.cli.candidates import candidates_of
from dictionary_learning.cli.data_options import DataArguments, data_arguments
from dictionary_learning.dictionaries.serialization import versions
from dictionary_learning.errors import ConfigError
from dictionary_learning.evaluation import EvaluationConfig, evaluate_dictionaries
from dictionary_learning.evaluation.reports import write_report
from dictionary_learning.interop.saved import Saved, saved_at
from dictionary_learning.loggers import read_history
from dictionary_learning.models import load_model
from dictionary_learning.sites import Site

logger = logging.getLogger(__name__)

_CTX_LEN = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateArguments(DataArguments):
    """What to evaluate, and on what. What is not given is as it was in training."""

    dictionaries: tuple[str, ...]
    """Folders of dictionaries, or of whole runs; of other packages' too, and of the hub."""
    model: str | None = None
    """The language model; by default the one that they were trained on."""
    data: str | None = None
    """The text; by default the documents that were held out in training."""
    sites: tuple[str, ...] = ()
    """The site of each dictionary, or one for all; by default what its files say, or the name of its folder."""
    target_sites: tuple[str, ...] = ()
    """The same for what is reconstructed, where that is something else."""
    save_dir: str | None = None
    """The folder for the report; by default the first of the folders given, or reports/ for what is not in a folder of ours."""
    n_tokens: int = 32_768
    """Tokens to evaluate on."""
    n_fidelity_tokens: int = 8_192
    """Tokens on which cross-entropy is measured; 0 for none."""
    batch_size: int = 8
    """Contexts in a forward pass."""
    ctx_len: int | None = None
    """Tokens in a context; by default as in training, or 128."""
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
    saved = [one for place in arguments.dictionaries for one in saved_at(place)]
    first = saved[0].config
    for one in saved:
        if one.config.get("buffer", {}).get("filter") != first.get("buffer", {}).get("filter"):
            raise ConfigError(
                f"'{one.name}' was trained with another token filter than '{saved[0].name}'. Evaluate them apart."
            )
    buffer = first.get("buffer", {})
    trained = _run_of(first)
    name = arguments.model or trained.get("model") or buffer.get("model", {}).get("name")
    if name is None:
        raise ConfigError(f"'{saved[0].name}' does not say which model it was trained on. Give --model.")
    revision = trained.get("revision") if arguments.model is None else None
    model = load_model(name, device=arguments.device, dtype=arguments.dtype, revision=revision)
    model.check_trained_on(buffer.get("model", {}))
    rule = dict(buffer.get("filter", {}))
    limits = {Site.parse(site): limit for site, limit in rule.pop("norm_limits", {}).items()}
    report = evaluate_dictionaries(
        model,
        candidates_of(saved, model, arguments.sites, arguments.target_sites),
        _text(arguments, first),
        EvaluationConfig(
            n_tokens=arguments.n_tokens,
            n_fidelity_tokens=arguments.n_fidelity_tokens,
            ctx_len=arguments.ctx_len or buffer.get("ctx_len") or min(_CTX_LEN, model.longest_context or _CTX_LEN),
            batch_size=arguments.batch_size,
            pack=buffer.get("pack", True),
        ),
        token_filter=TokenFilter.from_dict(rule) if rule else None,
        norm_limits=limits,
    )
    place = arguments.dictionaries[0] if saved[0].folder is not None else "reports"
    return report_on(report, saved, Path(arguments.save_dir or place), {})


def report_on(report: dict[str, Any], saved: Sequence[Saved], save_dir: Path, seconds: Mapping[str, float]) -> Path:
    """Adds settings and training history to a report, writes it, and says what it found."""
    report = {
        "title": f"Dictionaries of {report['model']['name']}",
        **report,
        "versions": versions(),
        "seconds": dict(seconds),
    }
    for entry, one in zip(report["dictionaries"], saved, strict=True):
        entry["config"] = one.config.get("trainer", one.config.get("peer", {}))
        history = one.folder.parent / "metrics.jsonl" if one.folder is not None and "name" in one.config else None
        entry["history"] = read_history(history, one.name) if history is not None and history.is_file() else []
    written = write_report(report, save_dir)
    for entry in report["dictionaries"]:
        figures = entry["metrics"]
        shown = [f"FVU {figures['fvu']:.4f}", f"L0 {figures['l0']:.1f}"]
        if "ce_recovered_zero" in figures:
            shown.append(f"CE recovered {figures['ce_recovered_zero']:.4f}")
        logger.info("%s: %s", entry["name"], "  ".join(shown))
    logger.info("The report is in %s", written["html"])
    return written["html"]


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
