"""Effects by ablation: one latent at one token is set to its baseline, and the model runs."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._progress import Progress
from dictionary_learning.attribution._metrics import scalar
from dictionary_learning.attribution._pairs import one_by_one
from dictionary_learning.attribution._runs import Found, Path, Run
from dictionary_learning.interventions._latents import with_rows
from dictionary_learning.models import Edit


@torch.no_grad()
def ablations(run: Run, path: Path, value: float, batch_size: int, progress: Progress) -> Found:
    """Returns the effect of each latent over the difference, and that of each error.

    Of a dictionary at several sites, each site becomes what it was plus the change, so that no
    change arrives twice.
    """
    difference = path.pairs.values - path.base.values
    effects: list[float] = []
    for chosen in torch.arange(len(difference)).split(batch_size):
        some = path.pairs._replace(
            tokens=path.pairs.tokens[chosen], latents=path.pairs.latents[chosen], values=-difference[chosen]
        )
        effects += _differences(run, path, some.tokens, one_by_one(some, path.clean.x), value)
        progress.advance(len(chosen))
    errors: list[list[float]] = []
    for place in path.node.writes.values():
        at_site = torch.zeros_like(path.error)
        at_site[:, place] = -path.error[:, place]
        errors.append([])
        for chosen in torch.arange(len(path.error)).split(batch_size):
            errors[-1] += _differences(run, path, chosen, at_site[chosen], value)
            progress.advance(len(chosen))
    return Found(torch.tensor(effects, device=difference.device) / difference, torch.tensor(errors))


def _differences(
    run: Run, path: Path, tokens: Int[Tensor, "n"], added: Float[Tensor, "n output_dim"], value: float
) -> list[float]:
    """Returns what the metric loses by each of some changes, made side by side in one pass."""
    batch, n = len(run.mask), len(tokens)
    places = run.mask.nonzero()[tokens.cpu()]  # (n, 2): row and position
    rows = torch.arange(n) * batch + places[:, 0]
    is_held = len(path.node.writes) > 1

    def edit_of(place: slice) -> Edit:
        def edit(x: Tensor) -> Tensor:
            if is_held:
                x = with_rows(x, run.mask.repeat(n, 1), path.clean.y[:, place].repeat(n, 1))
            index = rows.to(x.device), places[:, 1].to(x.device)
            return x.index_put(index, added[:, place].to(x.device, x.dtype), accumulate=True)

        return edit

    ids, mask = (part.repeat(n, 1) for part in run.tokens)
    edits = {site: edit_of(place) for site, place in path.node.writes.items()}
    logits = run.model.run(ids, mask, edits, special_tokens=True).unflatten(0, (n, batch))
    return [value - float(scalar(run.metric, each)) for each in logits]
