"""`dictionary-learning compare`: which differences between dictionaries are more than chance."""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dictionary_learning.cli._evaluate import EvaluateArguments
from dictionary_learning.cli._output import as_json, write_line
from dictionary_learning.errors import ConfigError

if TYPE_CHECKING:
    from dictionary_learning.evaluation import Report


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareArguments(EvaluateArguments):
    """Compares dictionaries on the same text, each with the first of its site.

    Where every place has a report already, nothing is evaluated; else all are evaluated together,
    and the options are those of evaluate.
    """

    dictionaries: tuple[str, ...]
    """Reports (report.json), or folders of runs or dictionaries."""
    format: Literal["text", "json", "csv", "latex"] = "text"
    """How the comparison is written."""
    metrics: tuple[str, ...] = ()
    """The metrics to compare, as fvu kl; by default those of fidelity and sparsity."""

    def run(self) -> None:
        from dictionary_learning.evaluation import compare_reports
        from dictionary_learning.evaluation.reports import COMPARISONS

        if as_json.get() and self.format not in ("text", "json"):
            raise ConfigError(f"Got --json and --format {self.format}. Give one of them.")
        reports = self._reports()
        comparison = compare_reports(reports, metrics=self.metrics) if self.metrics else compare_reports(reports)
        missing = [name for name in self.metrics if all(one.metric != name for one in comparison.differences)]
        if missing:
            known = dict.fromkeys(one.metric for one in compare_reports(reports).differences)
            raise ConfigError(
                f"No two dictionaries have the metric '{missing[0]}' with an error bar. Among those that have: "
                f"{', '.join(known)}."
            )
        write_line(COMPARISONS["json" if as_json.get() else self.format](comparison))

    def _reports(self) -> "list[Report]":
        from dictionary_learning._run_folder import resolve_latest
        from dictionary_learning.evaluation import read_report

        places = [Path(resolve_latest(one)) for one in self.dictionaries]
        files = [place if place.suffix == ".json" else place / "report.json" for place in places]
        if all(file.is_file() for file in files):
            return [read_report(file) for file in files]
        alone = [place for place, file in zip(places, files, strict=True) if place == file]
        if alone:
            raise ConfigError(
                f"Got the report '{alone[0]}' beside dictionaries without one. Give reports alone, or the folders of "
                "all dictionaries."
            )
        written = self.evaluate()
        logger.info("The report: %s", written.page)
        return [written.report]
