"""`dictionary-learning downstream`: what saved dictionaries are good for."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dictionary_learning._run_folder import new_folder, resolve_latest
from dictionary_learning._text_reading import TextReading
from dictionary_learning._trained_on import TrainedModel, check_named, model_of, text_of
from dictionary_learning.cli._evaluate import common, read_text
from dictionary_learning.cli._model_options import ModelArguments
from dictionary_learning.cli._output import write_result
from dictionary_learning.config import setting
from dictionary_learning.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from dictionary_learning.evaluation import Candidate
    from dictionary_learning.evaluation.downstream import DownstreamReport, ProbeTask
    from dictionary_learning.interop._saved import Saved
    from dictionary_learning.models import TracedModel

logger = logging.getLogger(__name__)

MEASURES = ("probing", "absorption", "perturbation", "removal", "disentangling", "context")
"""What can be measured, by the names of the fields of `DownstreamReport`."""
_NEED_DATA = ("probing", "perturbation", "removal")
_SAE_PROBES = "sae-probes"


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
                f"--tasks {wants[0]} needs labelled texts. Give --data tasks.csv, or --data {_SAE_PROBES}."
            )
        for option, given in (("--ks", self.ks), ("--ns", self.ns or (1,))):
            if not given or min(given) < 1:
                raise ConfigError(f"Got {option} {' '.join(map(str, given))}; give numbers from 1.")

    def run(self) -> None:
        from dictionary_learning.cli._candidates import candidates_of, load_saved
        from dictionary_learning.evaluation.downstream import DownstreamReport

        saved = load_saved(self.dictionaries)
        wanted = self._model(saved)
        # labelled texts are read first, so that an error in them costs no time
        found = labelled(self.data, self.names, self.prompt_column, self.label_column) if self._needs_tasks else []
        model = self.load(wanted.name, wanted.revision)
        candidates = candidates_of(saved, model, self.sites, self.target_sites)
        parts: dict[str, Any] = {}
        for name in dict.fromkeys(self.tasks):
            logger.info("Measuring %s.", name)
            parts[name] = _RUN[name](self, model, candidates, found, saved)
        write_section(DownstreamReport(**parts), model.describe(), self._folder(saved))

    @property
    def _needs_tasks(self) -> bool:
        return any(name in ("probing", "perturbation") for name in self.tasks)

    def _model(self, saved: "Sequence[Saved]") -> TrainedModel:
        trained_on = None if self.model else common(saved, "language models", model_of, "Give --model.")
        if trained_on is not None:
            check_named("model", "--model", trained_on.name)
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


def labelled(
    places: Sequence[str], names: Sequence[str] = (), text: str | None = None, label: str | None = None
) -> "list[ProbeTask]":
    """Returns the tasks of files and folders, and of the package sae-probes."""
    from dictionary_learning.evaluation.downstream import as_probe_tasks, sae_probes_tasks

    found: list[Any] = []
    for place in places:
        if place == _SAE_PROBES or place.endswith(".whl"):
            wanted = {"names": "all" if tuple(names) == ("all",) else names} if names else {}
            found += sae_probes_tasks(**wanted, path=None if place == _SAE_PROBES else place)
        else:
            found += as_probe_tasks(place, text=text, label=label)
    return as_probe_tasks(found)


def write_section(section: "DownstreamReport", model: Mapping[str, Any], folder: Path) -> None:
    """Adds a section to the report in a folder, or writes a new one; prints its page's path."""
    from dictionary_learning.dictionaries._serialization import versions
    from dictionary_learning.evaluation import read_report
    from dictionary_learning.evaluation.reports import write_report

    if (folder / "report.json").is_file():
        there = read_report(folder)
        new = {key: value for key, value in section.items() if key != "schema_version"}
        whole = section if there.downstream is None else dataclasses.replace(there.downstream, **new)
        report: Mapping[str, Any] = dataclasses.replace(there, downstream=whole)
    else:
        title = f"Dictionaries of {model['name']}, downstream"
        report = {"title": title, "schema_version": 2, "model": model, "downstream": section, "versions": versions()}
    write_result(str(write_report(report, folder)["html"]))


_Run = Callable[[DownstreamArguments, "TracedModel", "list[Candidate]", "list[ProbeTask]", "Sequence[Saved]"], Any]


def _probing(given: DownstreamArguments, model: Any, candidates: Any, tasks: Any, saved: Any) -> Any:
    from dictionary_learning.evaluation.downstream import ProbingConfig, probe_latents

    names = ("ks", "pooling", "ranking", "n_train", "n_test", "ctx_len", "batch_size", "n_resamples", "seed")
    return probe_latents(model, candidates, tasks, ProbingConfig(**given.options(*names)))


def _absorption(given: DownstreamArguments, model: Any, candidates: Any, tasks: Any, saved: Any) -> Any:
    from dictionary_learning.evaluation.downstream import AbsorptionConfig, feature_absorption

    config = AbsorptionConfig(**given.options("n_words", "n_resamples", "seed"))
    return feature_absorption(model, candidates, config=config)


def _perturbing(given: DownstreamArguments) -> Any:
    from dictionary_learning.evaluation.downstream import PerturbationConfig

    names = ("n_train", "n_test", "ctx_len", "batch_size", "n_resamples", "seed", *_ns(given))
    return PerturbationConfig(**given.options(*names))


def _ns(given: DownstreamArguments) -> list[str]:
    """Returns the option of the numbers of latents, if it was given."""
    return ["ns"] if given.ns else []


def _perturbation(given: DownstreamArguments, model: Any, candidates: Any, tasks: Any, saved: Any) -> Any:
    from dictionary_learning.evaluation.downstream import targeted_probe_perturbation

    fit = [task for task in tasks if len(task.classes) > 2]
    if len(fit) != 1:
        raise ConfigError(f"Got {len(fit)} tasks of three classes or more in --data; perturbation needs one.")
    return targeted_probe_perturbation(model, candidates, fit[0], _perturbing(given))


def _removal(given: DownstreamArguments, model: Any, candidates: Any, tasks: Any, saved: Any) -> Any:
    from dictionary_learning.evaluation.downstream import spurious_correlation_removal

    if len(given.data) != 1:
        raise ConfigError(f"Got {len(given.data)} of --data; removal needs one file, with a column for the attribute.")
    columns = {"text": given.prompt_column or "text", "label": given.label_column or "label"}
    columns |= {"attribute": given.attribute_column}
    return spurious_correlation_removal(model, candidates, given.data[0], _perturbing(given), **columns)


def _disentangling(given: DownstreamArguments, model: Any, candidates: Any, tasks: Any, saved: Any) -> Any:
    from dictionary_learning.evaluation.downstream import DisentanglingConfig, disentangle_attributes

    config = DisentanglingConfig(**given.options("batch_size", "n_resamples", "seed", *_ns(given)))
    return disentangle_attributes(model, candidates, config=config)


def _context(given: DownstreamArguments, model: Any, candidates: Any, tasks: Any, saved: Any) -> Any:
    from dictionary_learning.evaluation.downstream import ContextConfig, context_sensitivity

    trained = next((told for one in saved if (told := text_of(one.config))), None)
    windows = tuple(m for m in (1, 2, 4, 8, 16, 32) if m < given.ctx_len)
    config = ContextConfig(windows=windows, **given.options("n_tokens", "ctx_len", "batch_size", "n_resamples", "seed"))
    return context_sensitivity(model, candidates, read_text(TextReading(), given.text, trained), config)


_RUN: dict[str, _Run] = {
    "probing": _probing,
    "absorption": _absorption,
    "perturbation": _perturbation,
    "removal": _removal,
    "disentangling": _disentangling,
    "context": _context,
}
