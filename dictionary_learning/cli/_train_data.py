"""What a run of the command line reads: activations to train on, and held-out text."""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from dictionary_learning._text_reading import ContextReading
from dictionary_learning._trained_on import contexts_of
from dictionary_learning.cli._train_options import TrainArguments
from dictionary_learning.errors import ConfigError

if TYPE_CHECKING:
    from dictionary_learning.activations.cache import ActivationCache
    from dictionary_learning.buffer import ActivationBuffer
    from dictionary_learning.contexts import ContextStream
    from dictionary_learning.data import ContextSource, Source
    from dictionary_learning.evaluation import EvaluationConfig
    from dictionary_learning.models import TracedModel
    from dictionary_learning.parallel import Ranks, TracedElsewhere, TracedHere
    from dictionary_learning.sites import Site
    from dictionary_learning.trainers import OptimizationConfig

    Activations: TypeAlias = ActivationBuffer | ActivationCache | ContextStream

logger = logging.getLogger(__name__)

_LATENTS_PER_K = 8
"""A recipe's k is lowered to this share of the latents, where activations are narrow."""


def make_source(
    arguments: TrainArguments,
    model: "TracedModel | None",
    text: "Source | None",
    configs: "Sequence[OptimizationConfig]",
) -> "Activations":
    """Returns a cache, a buffer over the model, or whole contexts where a method needs them."""
    from dictionary_learning.activations.cache import ActivationCache
    from dictionary_learning.buffer import ActivationBuffer
    from dictionary_learning.contexts import ContextStream
    from dictionary_learning.dictionaries import WIRINGS

    size = _tokens_of_a_share(arguments)
    # the dictionaries share one order of the rows, which the first seed decides
    seed = next((config.seed for config in configs if config.seed is not None), 0)
    if arguments.cache is not None:
        return ActivationCache(
            arguments.cache,
            list(arguments.sites) or None,
            out_batch_size=size,
            seed=seed if arguments.cache_order else None,
            window=arguments.cache_window,
            device=arguments.storage_device,
            **arguments.options("end_of_data", "model"),
        )
    assert model is not None and text is not None
    wirings = {getattr(config, "wiring", None) or "autoencoder" for config in configs}
    sites = arguments.sites_of(model, predicts=any(WIRINGS[name].writes_others for name in wirings))
    contexts = arguments.contexts(text, model, arguments.ctx_len, arguments.end_of_data)
    if any(config.needs_contexts for config in configs):
        logger.info("Contexts stay whole: options of the shuffle buffer, token norms and positions have no effect.")
        return ContextStream(
            contexts,
            model,
            sites,
            batch_size=size // arguments.ctx_len,
            predict=any(config.needs_predictions for config in configs),
            **arguments.options("ctx_len", "remove_bos", "end_of_data", "pack", "exclude_tokens"),
        )
    options = {**arguments.options("n_ctxs", "end_of_data", "retrace"), **arguments.reading, "seed": seed}
    options |= {"dtype": arguments.storage_dtype, "device": arguments.storage_device, "pack": arguments.pack}
    return ActivationBuffer(contexts, model, sites, out_batch_size=size, **options)


def make_source_apart(
    arguments: TrainArguments, text: "Source", configs: "Sequence[OptimizationConfig]", world: "Ranks"
) -> "TracedHere | TracedElsewhere":
    """Returns the same on a process that only traces, and what others see of it."""
    from dictionary_learning.parallel import traced_apart

    def make() -> "Activations":
        assert arguments.model is not None
        return make_source(arguments, arguments.load(arguments.model), text, configs)

    assert arguments.tracing_ranks is not None
    return traced_apart(make, arguments.tracing_ranks, world)


def _tokens_of_a_share(arguments: TrainArguments) -> int:
    """Returns what each share of the data gives to a step: as many shares as ranks at first."""
    from dictionary_learning._resumed import shares_of
    from dictionary_learning.parallel import n_shares, world_size

    place = arguments.resume_from or (arguments.save_dir if arguments.resume else None)
    n = (None if place is None else shares_of(Path(place))) or n_shares(
        world_size(), None if arguments.dry_run else arguments.tracing_ranks
    )
    if arguments.batch_size % n:
        raise ConfigError(
            f"Got --batch-size {arguments.batch_size}, which {n} processes cannot share evenly. Give a multiple of {n}."
        )
    return arguments.batch_size // n


def held_out(
    arguments: TrainArguments, model: "TracedModel | None", text: "Source | None", source: "Activations"
) -> dict[str, Any]:
    """Returns the arguments of `trainSAE` about evaluation while it trains."""
    from dictionary_learning._held_out_data import IN_TRAINING
    from dictionary_learning.contexts import ContextStream

    if arguments.evaluate_every is None:
        return {}
    config = how_to_evaluate(arguments, source).replace(**IN_TRAINING)
    assert text is not None and model is not None
    contexts = held_out_contexts(arguments, text, model, source)
    if arguments.cache is not None:
        # a cache has no model
        contexts = ContextStream(contexts, model, list(source.sites), ctx_len=config.ctx_len, pack=config.pack)
    return {"evaluation_data": contexts, "evaluation": config}


def held_out_contexts(
    arguments: TrainArguments, text: "Source", model: "TracedModel", source: "Activations"
) -> "ContextSource":
    """Returns the contexts of held-out text, which are made as in training."""
    rule = arguments
    if arguments.cache is not None:  # those of the cache were made by a rule of its own
        rule = contexts_of({"buffer": source.config}) or arguments
    return ContextReading(**{**rule.tokens(), "epochs": 1}).contexts(text, model, source.config["ctx_len"])


def evaluations(
    arguments: TrainArguments, source: "Activations", steps: int
) -> "dict[str, tuple[int, EvaluationConfig]]":
    """Returns by name how many evaluations a run makes, and what each measures."""
    from dictionary_learning._held_out_data import IN_TRAINING
    from dictionary_learning.evaluation import EvaluationConfig

    config, found = how_to_evaluate(arguments, source), dict[str, tuple[int, EvaluationConfig]]()
    if arguments.evaluate_every is not None:
        found["evaluations in training"] = (-(-steps // arguments.evaluate_every), config.replace(**IN_TRAINING))
    return {**found, "evaluation at the end, about": (1, config)}


def how_to_evaluate(arguments: TrainArguments, source: "Activations") -> "EvaluationConfig":
    """Returns how much held-out text is read, in contexts as in training."""
    from dictionary_learning.evaluation import EvaluationConfig

    n_eval_tokens, n_fidelity_tokens = arguments.n_eval_tokens, arguments.n_fidelity_tokens
    assert n_eval_tokens is not None and n_fidelity_tokens is not None  # see `sized`
    return EvaluationConfig(
        n_tokens=n_eval_tokens,
        n_fidelity_tokens=n_fidelity_tokens,
        ctx_len=source.config["ctx_len"],
        pack=source.config["pack"],
        batch_size=arguments.eval_batch_size,
        seed=arguments.eval_seed,
        **arguments.measured(),
    )


def adapted(config: Any, widths: "Mapping[Site, int]", given: Collection[str]) -> Any:
    """Returns a recipe's config with as many latents as these activations can carry, unless given.

    The width of a dictionary that reads several sites is their sum, and its size would grow with
    the square of their number. Here a crosscoder gets as many latents as an autoencoder of its
    widest site, and a cross-layer transcoder at least one per dimension of each layer.
    """
    from dictionary_learning.dictionaries import WIRINGS

    changes: dict[str, int] = {}
    wiring, factor = WIRINGS[getattr(config, "wiring", None) or "autoencoder"], config.expansion_factor
    reads = [width for site, width in widths.items() if site.side == "in" or not wiring.writes_others]
    size = config.dict_size or factor * max(reads)
    if wiring.reads_several and not {"dict_size", "expansion_factor"} & set(given):
        size = max(reads) * (max(1, factor // len(reads)) * len(reads) if wiring.writes_others else factor)
        changes["dict_size"] = size
    k = getattr(config, "k", None)
    if k is not None and "k" not in given and k > size // _LATENTS_PER_K:
        changes["k"] = max(1, size // _LATENTS_PER_K)
    if changes:
        shown = ", ".join(f"{name}={value}" for name, value in changes.items())
        logger.info("The recipe is adapted to activations of width %d: %s.", max(reads), shown)
    if {"dict_size", "finetune"} & set(given) and "expansion_factor" not in given:
        changes["expansion_factor"] = type(config)().expansion_factor  # the recipe's would contradict the size
    return config.replace(**changes)
