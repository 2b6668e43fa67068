"""The measures of `dictionary-learning downstream`, with what they are given: read and checked."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dictionary_learning._text_reading import TextReading
from dictionary_learning._trained_on import text_of
from dictionary_learning.cli._downstream import SAE_PROBES, DownstreamArguments
from dictionary_learning.cli._evaluate import read_text
from dictionary_learning.config import Registry
from dictionary_learning.errors import ConfigError

if TYPE_CHECKING:
    from dictionary_learning.evaluation.downstream import PerturbationConfig, ProbeTask
    from dictionary_learning.interop._saved import Saved

_MEASURES: Registry[Callable[..., Callable[..., Any]]] = Registry("measure in --tasks")
"""Functions of the arguments, the labelled tasks and what was saved; a measure each."""


def measures_of(given: DownstreamArguments, saved: "Sequence[Saved]") -> dict[str, Callable[..., Any]]:
    """Returns each measure by its name: a function of a model and candidates.

    Raises:
        ConfigError: an option cannot be used.
        DataError: a file cannot be read, or has not what its measure needs.
    """
    needed = any(name in ("probing", "perturbation") for name in given.tasks)
    tasks = labelled(given.data, given.names, given.prompt_column, given.label_column) if needed else []
    return {name: _MEASURES[name](given, tasks, saved) for name in dict.fromkeys(given.tasks)}


def labelled(
    places: Sequence[str], names: Sequence[str] = (), text: str | None = None, label: str | None = None
) -> "list[ProbeTask]":
    """Returns the tasks of files and folders, and of the package sae-probes."""
    from dictionary_learning.evaluation.downstream import as_probe_tasks, sae_probes_tasks

    found: list[Any] = []
    for place in places:
        if place == SAE_PROBES or place.endswith(".whl"):
            wanted = {"names": "all" if tuple(names) == ("all",) else names} if names else {}
            found += sae_probes_tasks(**wanted, path=None if place == SAE_PROBES else place)
        else:
            found += as_probe_tasks(place, text=text, label=label)
    return as_probe_tasks(found)


@_MEASURES.register("probing")
def _probing(given: DownstreamArguments, tasks: "list[ProbeTask]", saved: Any) -> Callable[..., Any]:
    from dictionary_learning.evaluation.downstream import ProbingConfig, probe_latents
    from dictionary_learning.evaluation.downstream._probing import split_of

    names = ("ks", "pooling", "ranking", "n_train", "n_test", "ctx_len", "batch_size", "n_resamples", "seed")
    config = ProbingConfig(**given.options(*names))
    for task in tasks:
        split_of(task, config)  # raises where a class has too few texts
    return partial(probe_latents, tasks=tasks, config=config)


@_MEASURES.register("absorption")
def _absorption(given: DownstreamArguments, tasks: Any, saved: Any) -> Callable[..., Any]:
    from dictionary_learning.evaluation.downstream import AbsorptionConfig, feature_absorption

    config = AbsorptionConfig(**given.options("n_words", "n_resamples", "seed"))
    return partial(feature_absorption, config=config)


@_MEASURES.register("perturbation")
def _perturbation(given: DownstreamArguments, tasks: "list[ProbeTask]", saved: Any) -> Callable[..., Any]:
    from dictionary_learning.evaluation.downstream import targeted_probe_perturbation
    from dictionary_learning.evaluation.downstream._perturbing import split_of

    fit = [task for task in tasks if len(task.classes) > 2]
    if len(fit) != 1:
        raise ConfigError(f"Got {len(fit)} tasks of three classes or more in --data; perturbation needs one.")
    config = _ablating(given)
    split_of(fit[0], config)  # raises where fewer classes have enough texts
    return partial(targeted_probe_perturbation, task=fit[0], config=config)


@_MEASURES.register("removal")
def _removal(given: DownstreamArguments, tasks: Any, saved: Any) -> Callable[..., Any]:
    from dictionary_learning.evaluation.downstream import spurious_correlation_removal
    from dictionary_learning.evaluation.downstream._triples import paired

    if len(given.data) != 1:
        raise ConfigError(f"Got {len(given.data)} of --data; removal needs one file, with a column for the attribute.")
    columns = {"text": given.prompt_column or "text", "label": given.label_column or "label"}
    columns |= {"attribute": given.attribute_column}
    (examples,), config = given.data, _ablating(given)
    text, label, attribute = columns.values()
    paired(examples, (text, label, attribute), **given.options("n_train", "n_test", "seed"))  # raises as above
    return partial(spurious_correlation_removal, examples=examples, config=config, **columns)


def _ablating(given: DownstreamArguments) -> "PerturbationConfig":
    from dictionary_learning.evaluation.downstream import PerturbationConfig

    names = ("n_train", "n_test", "ctx_len", "batch_size", "n_resamples", "seed", *_ns(given))
    return PerturbationConfig(**given.options(*names))


def _ns(given: DownstreamArguments) -> list[str]:
    """Returns the option of the numbers of latents, if it was given."""
    return ["ns"] if given.ns else []


@_MEASURES.register("disentangling")
def _disentangling(given: DownstreamArguments, tasks: Any, saved: Any) -> Callable[..., Any]:
    from dictionary_learning.evaluation.downstream import DisentanglingConfig, disentangle_attributes

    config = DisentanglingConfig(**given.options("batch_size", "n_resamples", "seed", *_ns(given)))
    return partial(disentangle_attributes, config=config)


@_MEASURES.register("context")
def _context(given: DownstreamArguments, tasks: Any, saved: "Sequence[Saved]") -> Callable[..., Any]:
    from dictionary_learning.evaluation.downstream import ContextConfig, context_sensitivity

    trained = next((told for one in saved if (told := text_of(one.config))), None)
    windows = tuple(m for m in (1, 2, 4, 8, 16, 32) if m < given.ctx_len)
    config = ContextConfig(windows=windows, **given.options("n_tokens", "ctx_len", "batch_size", "n_resamples", "seed"))
    text = read_text(TextReading(), given.text, trained)
    return partial(context_sensitivity, text=text, config=config)
