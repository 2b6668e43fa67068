"""`dictionary-learning evaluate`: a report on saved dictionaries."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from dictionary_learning._run_folder import new_folder
from dictionary_learning._said import asked_of, check_reading_said, saying
from dictionary_learning._text_reading import ContextReading, TextReading
from dictionary_learning._trained_on import (
    TrainedModel,
    TrainedText,
    buffer_of,
    check_named,
    check_reading,
    common,
    contexts_of,
    dtype_of,
    filter_of,
    held_out_of,
    model_of,
    text_of,
)
from dictionary_learning.cli._evaluation_options import EvaluationArguments
from dictionary_learning.cli._model_options import ModelArguments
from dictionary_learning.cli._options import ContextArguments
from dictionary_learning.cli._output import aligned, write_result
from dictionary_learning.cli._trust import load_trusted
from dictionary_learning.errors import ConfigError

if TYPE_CHECKING:
    from dictionary_learning.data import ContextSource, Source
    from dictionary_learning.evaluation import DictionaryReport, Report
    from dictionary_learning.interop._saved import Saved
    from dictionary_learning.models import TracedModel

logger = logging.getLogger(__name__)

_CTX_LEN = 128
_REPORTS = "reports"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateArguments(EvaluationArguments, ModelArguments, ContextArguments):
    """Evaluates saved dictionaries on held-out text, and prints the path of the report's page."""

    positional: ClassVar = ("dictionaries",)
    aliases: ClassVar = {"n_eval_tokens": "n_tokens", "eval_batch_size": "batch_size", "eval_seed": "seed"}
    dictionaries: tuple[str, ...]
    """Folders of dictionaries, or of whole runs; of other packages too, and hub repositories."""
    model: str | None = None
    """The language model; by default the one that they were trained on."""
    data: str | None = None
    """The text; by default the documents that were held out of training."""
    sites: tuple[str, ...] = ()
    """The site of each dictionary, or one for all; by default as its files or its folder say."""
    target_sites: tuple[str, ...] = ()
    """The same for what is reconstructed, if that is something else."""
    save_dir: str | None = None
    """The folder for the report; by default that of the run, if it has none yet. What is not one
    run on its own model and text gets a new folder in reports/, and so does a second report."""
    n_tokens: int = 32_768
    """Tokens to evaluate on; --n-eval-tokens, as train has it, is the same."""
    n_fidelity_tokens: int = 8_192
    """Tokens on which cross-entropy is measured; 0 for none."""
    batch_size: int = 8
    """Contexts in a forward pass."""
    ctx_len: int | None = None
    """Tokens in a context; by default as in training, or 128."""
    seed: int = 0
    """Seed of the error bars and of what is drawn at random."""
    probe: tuple[str, ...] = ()
    """Labelled texts (.csv, .tsv, .jsonl, or sae-probes) that few latents should tell apart; the
    command downstream has more options."""

    def run(self) -> None:
        self.evaluate().show()

    def evaluate(self) -> "Written":
        """Evaluates, and writes the report."""
        from dictionary_learning.activations._filters import TokenFilter
        from dictionary_learning.cli._candidates import candidates_of
        from dictionary_learning.cli._measures import labelled
        from dictionary_learning.evaluation import EvaluationConfig, evaluate_dictionaries

        saved = load_trusted(self.dictionaries, self.model, self)
        tasks = labelled(self.probe) if self.probe else []
        # what files do not tell decides nothing; what two of them tell differently is asked for
        trained_on = None if self.model else common(saved, "language models", model_of, "Give --model.")
        wanted = TrainedModel(self.model, None) if self.model else trained_on
        if wanted is None:
            raise ConfigError(f"'{saved[0].name}' does not say which model it was trained on. Give --model.")
        if not self.data:
            common(saved, "texts", held_out_of, "Give --data.")
        text = next((told for one in saved if (told := text_of(one.config))), None)
        ctx_len = self.ctx_len or common(
            saved, "context lengths", lambda c: buffer_of(c).get("ctx_len"), "Give --ctx-len."
        )
        rule = common(saved, "token filters", filter_of)
        documents = read_text(self, self.data, text)  # an error in it comes before the model is loaded
        model = self.load(wanted.name, wanted.revision, dtype_in_training(self, saved))
        stream = contexts_as_trained(self, saved, documents, model, ctx_len)
        candidates = candidates_of(saved, model, self.sites, self.target_sites)
        report = evaluate_dictionaries(
            model,
            candidates,
            stream,
            EvaluationConfig(
                ctx_len=stream.ctx_len,
                pack=stream.pack,
                **self.options("n_tokens", "n_fidelity_tokens", "batch_size", "seed"),
                **self.measured(),
            ),
            token_filter=TokenFilter.from_dict(rule) if rule else None,
        )
        if tasks:
            report = dataclasses.replace(report, downstream=self._probed(model, candidates, tasks))
        return report_on(report, saved, _report_folder(self, saved), {})

    def _probed(self, model: Any, candidates: Any, tasks: Any) -> Any:
        from dictionary_learning.evaluation.downstream import DownstreamReport, ProbingConfig, probe_latents

        return DownstreamReport(
            probing=probe_latents(model, candidates, tasks, ProbingConfig(n_resamples=self.n_resamples))
        )


class Written(NamedTuple):
    """A report that was written."""

    report: "Report"
    page: str
    """The path of its page."""
    folders: Sequence[str | None]
    """The folder of each dictionary."""

    def show(self) -> None:
        """Prints the path of the page, or the main facts as JSON."""
        found = [
            {"name": entry.name, "site": entry.site, "folder": folder, "metrics": dict(entry.metrics)}
            | ({"convention_metrics": dict(entry.convention_metrics)} if entry.convention_metrics else {})
            for entry, folder in zip(self.report.dictionaries, self.folders, strict=True)
        ]
        write_result({"report": self.page, "dictionaries": found}, [self.page])


def report_on(report: "Report", saved: "Sequence[Saved]", save_dir: Path, seconds: Mapping[str, float]) -> Written:
    """Adds settings and training history to a report, and writes it."""
    from dictionary_learning.dictionaries._serialization import versions
    from dictionary_learning.evaluation.reports import write_report
    from dictionary_learning.evaluation.reports._contents import remarks
    from dictionary_learning.evaluation.reports._conventional import lines_of
    from dictionary_learning.loggers import read_history
    from dictionary_learning.models import shown_name

    entries: list[Any] = []
    for entry, one in zip(report.dictionaries, saved, strict=True):
        # dictionaries of other packages have no history of ours
        history = one.folder.parent / "metrics.jsonl" if one.folder is not None and "name" in one.config else None
        known = read_history(history, one.name) if history is not None and history.is_file() else []
        config = one.config.get("trainer", one.config.get("peer", {}))
        entries.append(dataclasses.replace(entry, config=config, history=known))
    for line in [*_table(entries, saved), *aligned(lines_of(report))]:
        logger.info("%s", line)
    for sentence in remarks(report):
        logger.info("%s", sentence)
    title = f"Dictionaries of {shown_name(report.model)}"
    whole = dataclasses.replace(report, title=title, dictionaries=entries, versions=versions(), seconds=dict(seconds))
    page = str(write_report(whole, save_dir)["html"])
    return Written(whole, page, [None if one.folder is None else str(one.folder) for one in saved])


def _table(entries: "Sequence[DictionaryReport]", saved: "Sequence[Saved]") -> list[str]:
    """Returns the main figures of dictionaries, a line for each, with its folder."""
    columns = {"ce_increase": "CE increase"}
    columns |= {f"ce_recovered_{kind}": f"CE recovered ({kind})" for kind in ("zero", "mean", "resample")}
    # all of a report are measured against the same ablations; one of them is enough here
    shown = [name for name in columns if any(_figure(entry, name) for entry in entries)][:2]
    rows = [["dictionary", "FVU", "L0", *(columns[name] for name in shown), "folder"]]
    for entry, one in zip(entries, saved, strict=True):
        figures = [_figure(entry, "fvu"), f"{entry.metrics['l0']:.1f}", *(_figure(entry, name) for name in shown)]
        rows.append([entry.name, *figures, str(one.folder or "")])
    return aligned(rows)


def _figure(entry: "DictionaryReport", name: str) -> str:
    value = entry.metrics.get(name, math.nan)
    if not math.isfinite(value):
        return ""
    figure = entry.figure(name)
    return f"{figure.value:.4f}" + (f" \u00b1 {figure.error.standard_error:.4f}" if figure.error else "")


def _report_folder(arguments: EvaluateArguments, saved: "Sequence[Saved]") -> Path:
    """Returns where the report goes: the run's folder holds only one on its own model and text."""
    if arguments.save_dir is not None:
        return Path(arguments.save_dir)
    from dictionary_learning._run_folder import resolve_latest

    config, place = saved[0].config, resolve_latest(arguments.dictionaries[0])
    is_own = len(arguments.dictionaries) == 1 and saved[0].folder is not None and not arguments.sites
    own_model, own_text = model_of(config), text_of(config)
    is_own &= arguments.model is None or (own_model is not None and arguments.model == own_model.name)
    is_own &= arguments.data is None or (own_text is not None and arguments.data == own_text.data)
    is_own &= not (Path(place) / "report.json").exists()
    return Path(place) if is_own else new_folder(_REPORTS, *(Path(one).name for one in arguments.dictionaries[:3]))


def dtype_in_training(asked: ModelArguments, saved: "Sequence[Saved]") -> str | None:
    """Returns the dtype of the model in training, unless another is asked for.

    Raises:
        ConfigError: two dictionaries were trained with different ones.
    """
    return asked.dtype or common(saved, "dtypes of the model", dtype_of, "Or give --dtype for both.")


def contexts_as_trained(
    asked: ContextReading, saved: "Sequence[Saved]", text: "Source", model: "TracedModel", ctx_len: int | None
) -> "ContextSource":
    """Returns the contexts of a text, made as in training but for what is asked for otherwise.

    Raises:
        ConfigError: two dictionaries were trained on contexts that were made differently.
    """
    trained = common(saved, "ways of making contexts", contexts_of) or ContextReading()
    rule = saying(trained.replace(**asked_of(asked, ContextReading)), asked.said)
    return rule.contexts(text, model, ctx_len or min(_CTX_LEN, model.longest_context or _CTX_LEN))


def read_text(arguments: TextReading, given: str | None, trained: TrainedText | None) -> "Source":
    """Returns what was held out in training, unless another text is asked for."""
    from dictionary_learning._plain import to_plain

    own = trained.data if trained else None
    data = given or own
    if data is None:
        raise ConfigError("The dictionaries do not say which text they were trained on. Give --data.")
    if trained is None or to_plain(data) != own:
        return arguments.source(data)
    asked = asked_of(arguments, TextReading)
    if not given:
        check_named("text", "--data", data)
    told: dict[str, Any] = {"data_args": ()} if asked.get("data_args") else {}
    told |= {"mix": (), "weights": ()} if asked.get("mix") else {}
    check_reading(trained.reading.replace(**told), "--mix")
    if asked.get("mix", trained.reading.mix) != trained.reading.mix:
        asked.setdefault("weights", ())  # the others' were for other parts
    reading = saying(trained.reading.replace(**asked), arguments.said)
    check_reading_said(reading, data, reading.said)  # before a word on what is read
    as_stored = reading.replace(data_args=tuple(to_plain(reading.data_args)))  # without tokens
    if as_stored.settings() != trained.reading.settings():
        if reading.split == trained.reading.split:
            logger.warning("The data is not read as in training; documents that were trained on may be evaluated on.")
        return reading.source(data)
    # read in another way, other documents would be held out, some of which were trained on
    every = trained.held_out_every
    return reading.divided(data, every)[1] if every else reading.source(data)
