"""Dead latents drawn anew."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.dictionaries import Trainable
from dictionary_learning.trainers._batch import Batch
from dictionary_learning.trainers._optimizer_rows import take_rows

_ENCODER_SHARE = 0.2
"""Norm of a new encoder row, as a share of the living rows' mean norm (Bricken et al. 2023)."""


@torch.no_grad()
def resample_(
    dictionary: Trainable,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    errors: Float[Tensor, "batch"],
    dead: Int[Tensor, "n_dead"],
    generator: torch.Generator,
) -> Int[Tensor, "n_revived"]:
    """Points dead latents at tokens that are reconstructed badly, in place; the optimizer forgets what it knew of them.

    Tokens are drawn with a probability that grows with the square of their loss |x - x_hat|^2, without repetition. The new
    decoder row is the token's direction, the encoder row the same with a fifth of the living rows' mean norm; biases are 0, and
    other tensors of the nonlinearity as at first.
    Bricken et al. 2023, "Towards Monosemanticity", Neuron Resampling.

    Args:
        dictionary: the dictionary.
        optimizer: whose moments of the new rows become zero, by parameter.
        batch: the tokens to draw from.
        errors: their losses.
        dead: the latents to draw anew; at most as many as there are tokens with a loss.
        generator: of the draw.

    Returns:
        The latents that were drawn anew.
    """
    weights = (errors.double() / errors.double().amax().clamp_min(torch.finfo(torch.float64).tiny)).square().cpu()
    n = min(len(dead), int((weights > 0).sum()))
    if n == 0:
        return dead[:0]
    dead = dead[torch.randperm(len(dead), generator=generator)[:n].to(dead.device)]
    tokens = torch.multinomial(weights, n, generator=generator).to(batch.x.device)
    for part in dictionary.coders():
        own = part.own(dead)
        mine = tokens[(dead >= part.latents.start) & (dead < part.latents.stop)]
        if not len(own):
            continue
        coder = part.coder
        inputs, outputs = _directions(batch.x[mine, part.reads], coder), batch.y[mine, part.writes].float()
        if coder.b_dec is not None:
            outputs = outputs - coder.b_dec
        norms = coder.W_dec.norm(dim=1)
        alive = torch.ones(coder.dict_size, dtype=torch.bool, device=own.device).index_fill_(0, own, False)
        usual = norms[alive].mean() if bool(alive.any()) else norms.new_ones(())
        rows = {id(coder.W_dec): torch.nn.functional.normalize(outputs, dim=1) * usual}
        if not coder.is_tied:
            encoder = coder.W_enc[alive].float().norm(dim=1).mean() if bool(alive.any()) else 1.0
            rows[id(coder.W_enc)] = inputs * (_ENCODER_SHARE * encoder)
        first = float(getattr(coder.nonlinearity, "initial_threshold", 0.0))
        for name, p in coder.named_parameters():
            if p.shape[:1] != (coder.dict_size,) or name in ("b_dec", "W_skip"):
                continue
            filled = torch.full_like(p[own], first if name.endswith("threshold") else 0.0, dtype=torch.float32)
            p[own] = rows.get(id(p), filled).to(p.dtype)
            take_rows(optimizer, p, own)
    return dead


def _directions(x: Tensor, coder: torch.nn.Module) -> Tensor:
    center = getattr(coder, "b_dec", None) if getattr(coder, "centered", False) else None
    return torch.nn.functional.normalize(x.float() - (center if center is not None else 0.0), dim=1)
