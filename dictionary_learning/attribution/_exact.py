"""Effects by ablation: one latent at one token is set to its baseline, and the model runs."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.attribution._metrics import scalar
from dictionary_learning.attribution._pairs import one_by_one
from dictionary_learning.attribution._runs import Found, Path, Run
from dictionary_learning.sites import Site


@torch.no_grad()
def ablations(run: Run, site: Site, path: Path, value: float, batch_size: int) -> Found:
    """Returns the effect of each latent over the difference, and that of each error."""
    difference = path.pairs.values - path.base.values
    effects: list[float] = []
    for chosen in torch.arange(len(difference)).split(batch_size):
        some = path.pairs._replace(
            tokens=path.pairs.tokens[chosen], latents=path.pairs.latents[chosen], values=-difference[chosen]
        )
        effects += _differences(run, site, some.tokens, one_by_one(some, path.clean.x), value)
    errors: list[float] = []
    for chosen in torch.arange(len(path.error)).split(batch_size):
        errors += _differences(run, site, chosen, -path.error[chosen], value)
    return Found(torch.tensor(effects, device=difference.device) / difference, torch.tensor(errors))


def _differences(
    run: Run, site: Site, tokens: Int[Tensor, "n"], added: Float[Tensor, "n dim"], value: float
) -> list[float]:
    """Returns what the metric loses by each of some changes, made side by side in one pass."""
    batch, n = len(run.mask), len(tokens)
    places = run.mask.nonzero()[tokens.cpu()]  # (n, 2): row and position
    rows = torch.arange(n) * batch + places[:, 0]

    def edit(x: Tensor) -> Tensor:
        index = rows.to(x.device), places[:, 1].to(x.device)
        return x.index_put(index, added.to(x.device, x.dtype), accumulate=True)

    ids, mask = (part.repeat(n, 1) for part in run.tokens)
    logits = run.model.run(ids, mask, {site: edit}).unflatten(0, (n, batch))
    return [value - float(scalar(run.metric, each)) for each in logits]
