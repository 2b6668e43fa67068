"""Resampling: dead latents get new rows, which point at tokens with large errors."""

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
    """Points dead latents at tokens that are reconstructed badly, in place.

    Tokens are drawn without repetition, with a probability proportional to |y - y_hat|^4. The
    decoder row becomes the direction of the token's target, with the mean norm of the living rows.
    The encoder row becomes the direction of its input, with a fifth of their mean norm. Biases
    become 0, and thresholds their initial value.
    Bricken et al. 2023, "Towards Monosemanticity", Neuron Resampling.

    Args:
        dictionary: The dictionary.
        optimizer: Forgets its means of the new rows.
        batch: The tokens to draw from.
        errors: |y - y_hat|^2 of each token.
        dead: Indices of the dead latents.
        generator: Draws the tokens.

    Returns:
        Indices of the resampled latents: at most as many as there are tokens with an error.
    """
    # in float64, and relative to the largest: squares of large errors would overflow
    weights = (errors.double() / errors.double().amax().clamp_min(torch.finfo(torch.float64).tiny)).square().cpu()
    n = min(len(dead), int((weights > 0).sum()))
    if n == 0:
        return dead[:0]
    dead = dead[torch.randperm(len(dead), generator=generator)[:n].to(dead.device)]
    tokens = torch.multinomial(weights, n, generator=generator).to(batch.x.device)
    for part in dictionary.coders():
        own = part.own(dead)
        mine = tokens[(dead >= part.latents.start) & (dead < part.latents.stop)]  # (own,)
        if not len(own):
            continue
        coder = part.coder
        inputs, outputs = batch.x[mine, part.reads].float(), batch.y[mine, part.writes].float()
        if coder.b_dec is not None:  # the latent adds to b_dec
            outputs = outputs - coder.b_dec
            inputs = inputs - coder.b_dec if coder.apply_b_dec_to_input else inputs
        norms = coder.W_dec.norm(dim=1)
        alive = torch.ones(coder.dict_size, dtype=torch.bool, device=own.device).index_fill_(0, own, False)
        usual = norms[alive].mean() if bool(alive.any()) else norms.new_ones(())
        rows = {id(coder.W_dec): torch.nn.functional.normalize(outputs, dim=1) * usual}
        if not coder.is_tied:
            encoder = coder.W_enc[alive].float().norm(dim=1).mean() if bool(alive.any()) else 1.0
            rows[id(coder.W_enc)] = torch.nn.functional.normalize(inputs, dim=1) * (_ENCODER_SHARE * encoder)
        threshold = float(getattr(coder.nonlinearity, "initial_threshold", 0.0))
        for name, p in coder.named_parameters():
            # a width may equal dict_size: only the name tells tensors without rows for latents
            if p.shape[:1] != (coder.dict_size,) or name in ("b_dec", "W_skip"):
                continue
            filled = torch.full_like(p[own], threshold if name.endswith("threshold") else 0.0, dtype=torch.float32)
            p[own] = rows.get(id(p), filled).to(p.dtype)
            take_rows(optimizer, p, own)
    return dead
