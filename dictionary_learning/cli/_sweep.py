"""`dictionary-learning sweep`: a grid of methods and settings, from a file to its report."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from dictionary_learning._run_folder import new_folder
from dictionary_learning._said import saying
from dictionary_learning._shell_words import place, shown_command
from dictionary_learning.cli._arguments import CommandArguments
from dictionary_learning.cli._output import aligned, write_result
from dictionary_learning.cli._run_file import read_file
from dictionary_learning.cli._stopping import resuming, saying_what_goes_on
from dictionary_learning.cli._train_data import held_out_contexts, how_to_evaluate, make_source
from dictionary_learning.cli._train_options import TrainArguments, check_run, sized
from dictionary_learning.errors import ConfigError

logger = logging.getLogger(__name__)

_NOT_IN_A_SWEEP = (
    "save_dir", "overwrite", "resume", "allow_changed", "dry_run", "save_steps", "keep_checkpoints", "patience",
    "resume_from", "verbose", "on_anomaly", "evaluate_every", "save_best", "wandb_project", "tensorboard",
)  # fmt: skip
"""Options of `train` that a sweep decides, or does not have."""
_SWEEPS = "sweeps"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepFile(TrainArguments):
    """What a sweep's file holds: methods, the grid, and options of `train` by Python names."""

    methods: Mapping[str, Any]
    """For each method its settings, as in its typed config; a list means each of its values."""
    grid: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of every method."""
    memory_gb: float | None = None
    """Gigabytes for the dictionaries that train together; by default 80 % of what is free."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepArguments(CommandArguments):
    """Trains every combination of methods and settings that a file names, and compares them.

    The file is YAML: `model`, `data`, `methods`, `grid` and options of train, as docs/sweeps.md
    shows. Dictionaries that fit into memory together are trained together, on the same rows. Prints
    the path of the report's page.
    """

    positional: ClassVar = ("config",)
    config: str
    """The file."""
    save_dir: str | None = None
    """The folder of the sweep; by default a new one, sweeps/<date>-<time>-<name of the file>."""
    resume: bool = False
    """Whether the sweep in --save-dir goes on; finished runs are not repeated."""
    memory_gb: float | None = None
    """Gigabytes for the dictionaries that train together, instead of what the file says."""
    device: str | None = None
    """The device, instead of what the file says."""

    def run(self) -> None:
        folder = self.save_dir or str(new_folder(_SWEEPS, Path(self.config).stem))
        with saying_what_goes_on(lambda: ("", resuming(folder))):
            self._run(folder)

    def _run(self, folder: str) -> None:
        from dictionary_learning.sweeps import SweepConfig, run_sweep
        from dictionary_learning.sweeps._results import summaries
        from dictionary_learning.sweeps._tables import cells

        told, given = read_sweep_file(Path(self.config))
        if self.resume and self.save_dir is None:
            raise ConfigError("--resume needs the folder of the sweep: give --save-dir.")
        chosen = {"device": self.device or told.device, "memory_gb": self.memory_gb or told.memory_gb}
        told = sized(saying(told.replace(**chosen), given))
        sweep = SweepConfig(methods=told.methods, grid=told.grid)
        configs = [point.config for point in sweep.points()]
        if told.model is None or told.data is None:
            raise ConfigError(f"'{self.config}' needs model and data: dictionaries are compared on held-out text.")
        check_run(told, configs, given)
        text, held_out = told.divided(told.data, told.held_out_every)
        model = told.load(told.model)
        data = make_source(told, model, text, configs)
        config = how_to_evaluate(told, data)
        kept = {
            name: value for name, value in told.to_dict().items() if name not in (*_NOT_IN_A_SWEEP, "methods", "grid")
        }
        result = run_sweep(
            sweep,
            data,
            math.ceil(told.n_tokens / told.batch_size),
            folder,
            evaluation_data=_with_model(told, held_out, model, data, config),
            evaluation=config,
            device=told.device or model.device,
            resume="auto" if self.resume else "never",
            run_cfg=kept,
            **told.options("memory_gb", "normalize_activations", "checkpoint_steps", "log_steps"),
        )
        table = cells(summaries(result.rows))
        for line in aligned([table[0], *table[1]]):
            logger.info("%s", line)
        logger.info("Their folders: %s", shown_command(["info", place(result.folder)]))
        found = [
            {"name": row.name, "site": row.site, "folder": str(row.folder), "metrics": dict(row.figures)}
            for row in result.rows
        ]
        write_result({"report": str(result.report), "dictionaries": found}, [str(result.report)])


def read_sweep_file(path: Path) -> tuple[SweepFile, frozenset[str]]:
    """Returns what a file says, and the names of what it gives.

    Raises:
        ConfigError: It cannot be read, or holds a name or value that cannot be used.
    """
    given = read_file(path)
    if "methods" not in given:
        raise ConfigError(
            f"'{path}' names no methods. Write a mapping with model, data and methods; see docs/sweeps.md."
        )
    unfit = [name for name in _NOT_IN_A_SWEEP if name in given]
    if unfit:
        raise ConfigError(
            f"'{path}' has {', '.join(unfit)}, which a sweep decides itself or does not have. Leave it out."
        )
    return SweepFile.from_dict(given), frozenset(given)


def _with_model(told: SweepFile, text: Any, model: Any, data: Any, config: Any) -> Any:
    """Returns held-out text; with the model, where the rows come from a cache, which has none."""
    from dictionary_learning.contexts import ContextStream

    contexts = held_out_contexts(told, text, model, data)
    if told.cache is None:
        return contexts
    return ContextStream(contexts, model, list(data.sites), ctx_len=config.ctx_len, pack=config.pack)
