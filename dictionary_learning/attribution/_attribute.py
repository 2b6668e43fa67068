"""How much latents, and what dictionaries do not explain, contribute to a scalar of the logits.

Marks et al. 2024, Sparse Feature Circuits, https://arxiv.org/abs/2403.19647.
"""

import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._progress import Progress
from dictionary_learning._types import ModelLike
from dictionary_learning._usual_state import usual_state
from dictionary_learning.attribution._exact import ablations
from dictionary_learning.attribution._metrics import Metric
from dictionary_learning.attribution._nodes import nodes_of
from dictionary_learning.attribution._records import Attribution, Effects, Method
from dictionary_learning.attribution._runs import Found, Path, Run, check_some, paths_of, warn_of_rounding
from dictionary_learning.capture._ordinary import ordinary, special_ids
from dictionary_learning.data import TokenBatch
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.interventions import TokenMask
from dictionary_learning.interventions._activations import check_keep, token_mask
from dictionary_learning.interventions._inputs import as_tokens
from dictionary_learning.interventions._latents import with_rows
from dictionary_learning.models import Edit, load_model
from dictionary_learning.sites import Site, SiteDict

logger = logging.getLogger(__name__)

_LARGEST_GAP = 0.1
"""Share of the change that effects by gradients may lack without a warning."""
_STEPS = "Give more steps, or other inputs as the baseline: near activations of 0 a norm changes faster than they."
_ONE_POINT = "The model is not linear in between: method='integrated' follows it, and 'ablation' measures."


@checked()
@usual_state(gradients=True)
def attribute(
    model: ModelLike,
    dictionaries: Any,
    inputs: Any,
    metric: Any,
    *,
    baseline: Any = None,
    method: Method = "integrated",
    n_steps: int = 10,
    keep: TokenMask | None = None,
    special_tokens: bool = False,
    batch_size: int = 16,
) -> Attribution:
    """Returns the effect of each active latent, and of each error, on a metric.

    At each site, x = decode(latents) + error. An effect compares what these are with a baseline: 0,
    or what they are on other inputs.

    * "gradient": the gradient of the unchanged model times the difference; one backward pass for
      all sites.
    * "patching": the same with other inputs as the baseline (attribution patching).
    * "integrated": the mean gradient on the way from the baseline to the inputs, latents and error
      of one site together, times the difference. Gradients are taken at the middle of `n_steps`
      equal steps, since the middle's error falls with the square of their number, and that of their
      ends in proportion to it.
    * "ablation": one latent is set to its baseline, and the model runs: exact, a run for each.

    Effects of several sites are each those on the whole model after it. They are not to be added:
    what one site passes on is in the effects of the next, too.

    A dictionary that writes several sites is one entry, at the first: the effect of a latent is the
    sum over sites of gradient times decoder, and each site has an error (`site_error`). While one
    site is changed, the later ones are held, since a latent writes these itself.

    Args:
        model: The language model.
        dictionaries: One or several: autoencoders, transcoders, heads, crosscoders; as
            `Placed(dictionary, site)` if their `info` does not say where.
        inputs: A text, several, or token ids. Texts are padded on the left.
        metric: A function from logits (batch, ctx, vocab) to one number, such as
            `logit_difference(answer, other)`.
        baseline: Other inputs of the same shape; by default latents and errors are compared with 0.
        method: See above.
        n_steps: Of "integrated".
        keep: The tokens that count; by default all.
        special_tokens: Whether latents on BOS, EOS and padding ids count too. Dictionaries are not
            trained on these.
        batch_size: Of "ablation": runs at once.

    Raises:
        ConfigError: Two dictionaries are at one site, the metric is no number, or the method lacks
            its baseline.
        DataError: The two inputs have different shapes, or no token counts.
        ModelError: The model runs on a server, or the metric does not depend on a site.
    """
    check_keep(keep)
    traced = load_model(model)
    warn_of_rounding(traced)
    nodes = nodes_of(traced, dictionaries)
    if method == "patching" and baseline is None:
        raise ConfigError("method='patching' compares with other inputs: give baseline, or use 'gradient'.")
    tokens = as_tokens(traced, inputs, padding_side="left")
    mask = ordinary(*tokens, () if special_tokens else special_ids(traced))
    if keep is not None:
        mask &= token_mask(keep, tokens.input_ids.unsqueeze(-1)).to(mask.device)
    other = None if baseline is None else as_tokens(traced, baseline, padding_side="left")
    _check_tokens(tokens, other, mask)
    run = Run(traced, tokens, mask, cast(Metric, metric))
    paths = paths_of(traced, nodes, tokens, other, mask)
    found: dict[Site, Found]
    if method == "ablation":
        value, found = run.value({}), {}
        n_runs = sum(len(path.pairs.values) + path.error.shape[0] * len(path.node.writes) for path in paths.values())
        with Progress("ablating latents and errors", n_runs, "runs") as progress:
            for site, path in paths.items():
                found[site] = ablations(run, path, value, batch_size, progress)
    elif method == "integrated":
        value, found = run.value({}), {}
        with Progress("following gradients", n_steps * len(paths), "passes") as progress:
            for site, path in paths.items():
                found[site] = _integrated(run, path, n_steps, progress)
    else:
        value, found = _at_inputs(run, paths)
    effects = SiteDict({site: _effects(run, path, found[site], value) for site, path in paths.items()})
    if method != "ablation":
        how = (f"n_steps={n_steps}", _STEPS) if method == "integrated" else (f"method='{method}'", _ONE_POINT)
        _warn_of_gaps(effects, *how)
    return Attribution(effects, value, method, tokens, other)


def _warn_of_gaps(effects: SiteDict[Effects], how: str, advice: str) -> None:
    """Warns of sites where effects by gradients do not sum to the change."""
    for site, each in effects.items():
        if abs(each.total - each.change) > _LARGEST_GAP * abs(each.change):
            told = "With %s, effects at '%s' sum to %.3g, and the metric changes by %.3g. %s"
            logger.warning(told, how, site, each.total, each.change, advice)


def _at_inputs(run: Run, paths: Mapping[Site, Path]) -> tuple[float, dict[Site, Found]]:
    """Returns what the gradients of the unchanged model say: one pass for all of one site."""
    alone = [site for site, path in paths.items() if len(path.node.writes) == 1]
    value, gradients = run.gradients(alone) if alone else (run.value({}), {})
    gradients |= {site: run.gradient_at(path.node)[1] for site, path in paths.items() if site not in gradients}
    return value, {site: Found.of(path, gradients[site]) for site, path in paths.items()}


def _integrated(run: Run, path: Path, n_steps: int, progress: Progress) -> Found:
    total = torch.zeros_like(path.start)
    for step in range(n_steps):
        at = path.start + (step + 0.5) / n_steps * (path.clean.y - path.start)
        total += run.gradient_at(path.node, at)[1].to(total)
        progress.advance()
    return Found.of(path, total / n_steps)


def _effects(run: Run, path: Path, found: Found, value: float) -> Effects:
    rows, positions = run.mask.nonzero(as_tuple=True)
    tokens = path.pairs.tokens.cpu()
    activation, baseline, gradient = (t.detach().float().cpu() for t in (path.pairs.values, path.base.values, found[0]))

    site_error = torch.zeros(len(found.error), *run.mask.shape)
    site_error[:, rows, positions] = found.error.detach().float().cpu()
    at_start = {site: _put(run, start) for site, start in path.node.at_sites(path.start).items()}
    return Effects(
        row=rows[tokens],
        position=positions[tokens],
        latent=path.pairs.latents.cpu(),
        activation=activation,
        baseline=baseline,
        gradient=gradient,
        effect=gradient * (activation - baseline),
        error=site_error.sum(0),
        mask=run.mask,
        change=value - run.value(at_start),
        dict_size=path.pairs.dictionary.dict_size,
        sites=tuple(path.node.writes),
        site_error=site_error,
    )


def _put(run: Run, rows: Tensor) -> Edit:
    """Returns the edit that gives the tokens that count other activations."""

    def put(x: Tensor) -> Tensor:
        return with_rows(x, run.mask, rows)

    return put


def _check_tokens(tokens: TokenBatch, other: TokenBatch | None, mask: Tensor) -> None:
    check_some(mask)
    if other is not None and not torch.equal(tokens.attention_mask, other.attention_mask):
        raise DataError(
            f"The inputs have the shape {tuple(tokens.input_ids.shape)} and the baseline "
            f"{tuple(other.input_ids.shape)}, or other padding. Give texts of equal numbers of tokens, one for each."
        )
