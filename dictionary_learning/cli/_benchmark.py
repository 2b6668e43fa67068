"""`dictionary-learning benchmark`: methods on activations whose features are known."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dictionary_learning._run_folder import new_folder
from dictionary_learning.cli._arguments import CommandArguments, add_config, config_parser, read_config, read_configs
from dictionary_learning.cli._methods import FILLED_IN, Method, method_of
from dictionary_learning.cli._output import as_json, write_line
from dictionary_learning.cli._parser import Parser
from dictionary_learning.cli._run_file import read_file
from dictionary_learning.cli._stopping import resuming, saying_what_goes_on
from dictionary_learning.errors import ConfigError

if TYPE_CHECKING:
    from dictionary_learning.sweeps import SyntheticResult

_TRAINER = "top_k"
_FOLDER = "benchmarks"
_OF_THE_RUN = ("seed",)
"""Settings of a method that the benchmark decides."""
_IN_A_FILE = ("methods", "grid", "case", "seeds", "n_tokens", "n_eval_tokens", "device")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkArguments(CommandArguments):
    """Trains methods on activations with known features, over several seeds, and scores them.

    Of the method's options, those that all named methods have can be given, each with several
    values, of which every combination is trained. A file has methods and a grid instead, as
    docs/ground_truth.md shows. Prints the table, or the path of the report's page.
    """

    positional: ClassVar = ("what", "config")
    what: Literal["synthetic"]
    """The benchmark: synthetic."""
    config: str | None = None
    """A YAML file with methods, a grid, and further options by their Python names."""
    case: str | None = None
    """The features: sae_lens_2k, small or synth_sae_bench_16k; a file may describe others. By
    default sae_lens_2k."""
    seeds: tuple[int, ...] = ()
    """Seeds of features, rows and weights; by default 0 1 2."""
    n_tokens: int | None = None
    """Rows to train on; by default those of the case."""
    n_eval_tokens: int | None = None
    """Held-out rows to score on; by default 100,000."""
    save_dir: str | None = None
    """The folder for dictionaries and report; by default a new one,
    benchmarks/<date>-<time>-synthetic."""
    resume: bool = False
    """Whether the benchmark in --save-dir goes on; finished seeds are not repeated."""
    format: Literal["page", "text", "json", "csv", "latex"] = "page"
    """What is printed: the path of the page, or one of the other files of the report."""
    device: str | None = None
    """The device; the accelerator if there is one."""


def build_parser(arguments: Sequence[str]) -> Parser:
    """Returns the parser; its options depend on the methods which the arguments name."""
    from dictionary_learning.trainers import TRAINERS
    from dictionary_learning.trainers.recipes import RECIPES

    choice = Parser("benchmark", add_help=False)
    choice.add_argument(
        "--trainer", nargs="+",
        help=f"The methods: {', '.join(sorted(TRAINERS))}. (default: {_TRAINER}, without a recipe or a file)",
    )  # fmt: skip
    choice.add_argument("--recipe", nargs="+", help=f"The settings of papers: {', '.join(sorted(RECIPES))}.")
    chosen, _ = choice.parse_known_args(arguments)
    named = [method_of(name, None) for name in chosen.trainer or ()]
    named += [method_of(None, name) for name in chosen.recipe or ()]
    methods = named or [method_of(_TRAINER, None)]
    parser = config_parser("benchmark", BenchmarkArguments, parents=[choice])
    first = methods[0].trainer.Config
    own = {field.name for field in dataclasses.fields(BenchmarkArguments)}
    shared = set.intersection(*({field.name for field in dataclasses.fields(m.trainer.Config)} for m in methods))
    hidden = {field.name for field in dataclasses.fields(first)} - shared | own | {*FILLED_IN, *_OF_THE_RUN}
    defaults = methods[0].recipe() if len(methods) == 1 and methods[0].recipe else None
    add_config(parser, first, exclude=hidden, several=True, defaults=defaults)
    parser.set_defaults(run=lambda namespace: run(namespace, methods, bool(named)))
    return parser


def run(namespace: argparse.Namespace, methods: Sequence[Method], are_named: bool) -> None:
    """Runs the command."""
    from dictionary_learning.sweeps import benchmark_synthetic

    arguments = read_config(namespace, BenchmarkArguments)
    if arguments.resume and arguments.save_dir is None:
        raise ConfigError("--resume needs the folder of the benchmark: give --save-dir.")
    told: dict[str, Any] = {}
    chosen: Any
    if arguments.config is not None:
        of_methods = sorted(namespace.given - {field.name for field in dataclasses.fields(BenchmarkArguments)})
        if are_named or of_methods:
            raise ConfigError(
                f"Got {', '.join(of_methods) or 'methods'} beside '{arguments.config}', which names the methods and "
                "their settings. Give them there."
            )
        told = read_benchmark_file(Path(arguments.config))
        chosen = {name: told.pop(name) for name in ("methods", "grid") if name in told}
    else:
        chosen = [
            config.replace(wandb_name=config.wandb_name or (method.name if method.recipe else None))
            for method in methods
            for config in read_configs(namespace, method.trainer.Config, method.recipe)
        ]
    options = arguments.options("case", "n_tokens", "n_eval_tokens", "device")
    given = {name: value for name, value in options.items() if value is not None}
    if arguments.seeds:
        given["seeds"] = arguments.seeds
    folder = arguments.save_dir or new_folder(_FOLDER, arguments.what)
    how = "auto" if arguments.resume else "never"
    with saying_what_goes_on(lambda: ("", resuming(folder))):
        _show(benchmark_synthetic(chosen, folder, **{**told, **given}, resume=how), arguments.format)


def read_benchmark_file(path: Path) -> dict[str, Any]:
    """Returns the options that a file gives, by their Python names.

    Raises:
        ConfigError: It cannot be read, names no methods, or has an unknown name.
    """
    found: Mapping[str, Any] = read_file(path)
    if "methods" not in found:
        raise ConfigError(f"'{path}' names no methods. Write methods: {{top_k: {{k: 12}}}}; see docs/ground_truth.md.")
    unknown = [name for name in found if name not in _IN_A_FILE]
    if unknown:
        raise ConfigError(f"'{path}' has {', '.join(unknown)}. Known are {', '.join(_IN_A_FILE)}.")
    return dict(found)


def _show(result: "SyntheticResult", form: str) -> None:
    form = "json" if as_json.get() else form
    files = {"text": "synthetic.md", "json": "results.json", "csv": "synthetic.csv", "latex": "synthetic.tex"}
    if form == "page":
        write_line(str(result.report))
    else:
        write_line((result.folder / files[form]).read_text(encoding="utf-8").rstrip("\n"))
