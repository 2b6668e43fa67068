"""`dictionary-learning downstream`: what saved dictionaries are good for."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dictionary_learning._run_folder import new_folder, resolve_latest
from dictionary_learning._trained_on import TrainedModel, common, model_of
from dictionary_learning.cli._evaluate import dtype_in_training
from dictionary_learning.cli._model_options import ModelArguments
from dictionary_learning.cli._output import write_result
from dictionary_learning.cli._trust import load_trusted
from dictionary_learning.config import setting
from dictionary_learning.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from dictionary_learning.evaluation.downstream import DownstreamReport
    from dictionary_learning.interop._saved import Saved

logger = logging.getLogger(__name__)

MEASURES = ("probing", "absorption", "perturbation", "removal", "disentangling", "context")
"""What can be measured, by the names of the fields of `DownstreamReport`."""
_NEED_DATA = ("probing", "perturbation", "removal")
SAE_PROBES = "sae-probes"
"""What --data says for the tasks of that package."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DownstreamArguments(ModelArguments):
    """Measures what saved dictionaries are good for, beside baselines; prints the report's page.

    probing: few latents that tell the labels of texts. absorption: latents of a first letter that
    are silent where they should fire. perturbation and removal: what ablating latents does to
    probes. disentangling: attributes of cities, changed one at a time. context: what of a token's
    latents comes from the text before it. Results go into the run's report, or a new one.
    """

    positional: ClassVar = ("dictionaries",)
    dictionaries: tuple[str, ...]
    """Folders of dictionaries, or of whole runs; of other packages too, and hub repositories."""
    tasks: tuple[str, ...] = ("probing",)
    """What is measured: probing, absorption, perturbation, removal, disentangling or context."""
    data: tuple[str, ...] = ()
    """Labelled texts for probing, perturbation (three classes or more) and removal (with a column
    attribute): .csv, .tsv or .jsonl files, or folders; sae-probes or its wheel for the tasks of
    that package."""
    names: tuple[str, ...] = ()
    """Tasks of sae-probes, or all; by default twelve with short texts."""
    prompt_column: str | None = None
    """The column of the texts; by default text, prompt, sentence or content."""
    label_column: str | None = None
    """The column of the labels; by default label, labels, target or class."""
    attribute_column: str = "attribute"
    """The column of what is correlated with the label, for removal."""
    text: str | None = None
    """The text for context; by default the documents that were held out of training."""
    model: str | None = None
    """The language model; by default the one that they were trained on."""
    sites: tuple[str, ...] = ()
    """The site of each dictionary, or one for all; by default as its files or its folder say."""
    target_sites: tuple[str, ...] = ()
    """The same for what is reconstructed, if that is something else."""
    save_dir: str | None = None
    """The folder for the report; by default that of the run, or a new one in reports/. A report
    that is there gets a section."""
    ks: tuple[int, ...] = (1, 2, 5, 16)
    """Numbers of latents of a probe."""
    ns: tuple[int, ...] = ()
    """Numbers of latents that are ablated or changed; by default 2 5 10 20 50 100, and 5 20 100 for
    disentangling, which runs the model for each."""
    pooling: Literal["mean", "max", "last"] = "mean"
    """What stands for a text in probing: the mean, largest or last of its tokens."""
    ranking: Literal["mean_difference", "f_statistic", "l1"] = "mean_difference"
    """How the latents of a probe are chosen."""
    n_train: int = setting(1024, at_least=4)
    """Texts for training a probe, at most."""
    n_test: int = setting(512, at_least=4)
    """Texts for its test, at most."""
    n_words: int = setting(4_000, at_least=20)
    """Words for absorption, at most."""
    n_tokens: int = setting(512, at_least=2)
    """Tokens that context looks at."""
    ctx_len: int = setting(128, at_least=2)
    """Tokens of a text that are read."""
    batch_size: int = setting(16, at_least=1)
    """Texts in a forward pass."""
    n_resamples: int = 1_000
    """Resamples of the texts for the error bars; 0 for none."""
    seed: int = 0
    """Of splits, resamples and random dictionaries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.tasks:
            if name not in MEASURES:
                raise UnknownNameError("measure in --tasks", name, MEASURES)
        if not self.data and (wants := [name for name in self.tasks if name in _NEED_DATA]):
            raise ConfigError(
                f"--tasks {wants[0]} needs labelled texts. Give --data tasks.csv, or --data {SAE_PROBES}."
            )
        for option, given in (("--ks", self.ks), ("--ns", self.ns or (1,))):
            if not given or min(given) < 1:
                raise ConfigError(f"Got {option} {' '.join(map(str, given))}; give numbers from 1.")

    def run(self) -> None:
        from dictionary_learning.cli._candidates import candidates_of
        from dictionary_learning.cli._measures import measures_of
        from dictionary_learning.evaluation.downstream import DownstreamReport
        from dictionary_learning.evaluation.reports import write_report

        saved = load_trusted(self.dictionaries, self.model, None)
        wanted = self._model(saved)
        # what the measures are given is read first, so that an error in it costs no time
        measures = measures_of(self, saved)
        model = self.load(wanted.name, wanted.revision, dtype_in_training(self, saved))
        candidates = candidates_of(saved, model, self.sites, self.target_sites)
        folder = self._folder(saved)
        report = _report_in(folder, model.describe())
        parts: dict[str, Any] = {}
        for name, measure in measures.items():
            logger.info("Measuring %s.", name)
            parts[name] = measure(model, candidates)
            # now, as the next measure may fail
            write_report(_with_section(report, DownstreamReport(**parts)), folder)
        write_result(str(folder / "report.html"))

    def _model(self, saved: "Sequence[Saved]") -> TrainedModel:
        trained_on = None if self.model else common(saved, "language models", model_of, "Give --model.")
        wanted = TrainedModel(self.model, None) if self.model else trained_on
        if wanted is None:
            raise ConfigError(f"'{saved[0].name}' does not say which model it was trained on. Give --model.")
        return wanted

    def _folder(self, saved: "Sequence[Saved]") -> Path:
        if self.save_dir is not None:
            return Path(self.save_dir)
        place = Path(resolve_latest(self.dictionaries[0]))
        is_own = len(self.dictionaries) == 1 and saved[0].folder is not None and not self.sites and not self.model
        return (
            place
            if is_own and place.is_dir()
            else new_folder("reports", *(Path(one).name for one in self.dictionaries[:3]))
        )


def _report_in(folder: Path, model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the report in a folder, or a new one."""
    from dictionary_learning.dictionaries._serialization import versions
    from dictionary_learning.evaluation import read_report
    from dictionary_learning.models import shown_name

    if (folder / "report.json").is_file():
        return read_report(folder)
    title = f"Dictionaries of {shown_name(model)}, downstream"
    return {"title": title, "schema_version": 2, "model": model, "versions": versions()}


def _with_section(report: Mapping[str, Any], section: "DownstreamReport") -> Mapping[str, Any]:
    """Returns a report with a section, beside the parts of one that is there."""
    from dictionary_learning.evaluation import Report

    if not isinstance(report, Report):
        return {**report, "downstream": section}
    new = {key: value for key, value in section.items() if key != "schema_version"}
    whole = section if report.downstream is None else dataclasses.replace(report.downstream, **new)
    return dataclasses.replace(report, downstream=whole)
