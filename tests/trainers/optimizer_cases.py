"""Parameters, gradients and states that optimizers are tried on."""

import torch

from dictionary_learning.trainers._optimizers import OPTIMIZERS

BUILT_HERE = [name for name in OPTIMIZERS if name != "adam_8bit"]
SHAPES = ((12, 8), (12, 8), (8,), (12, 2, 4))


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for shape in SHAPES]
    values[0] = torch.nn.functional.normalize(values[0], dim=1)
    return [torch.nn.Parameter(value.to(dtype)) for value in values]


def groups(params: list[torch.nn.Parameter]) -> list[dict]:
    return [{"params": params[:1], "unit_rows": True, "lr_factor": 2.0}, {"params": params[1:], "lr": 1e-2}]


def go(optimizer, params, steps, scale: float = 1.0) -> None:
    """Makes steps with gradients that depend on the step and on the weights."""
    for step in steps:
        generator = torch.Generator().manual_seed(step + 1)
        for p in params:
            p.grad = (torch.randn(p.shape, generator=generator) + p.detach().float()).to(p.dtype) * scale
        optimizer.step()
        optimizer.zero_grad()


def same_bits(ours, theirs) -> bool:
    return all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def tensors(state) -> list[torch.Tensor]:
    """Returns all tensors within a state, in order."""
    if isinstance(state, torch.Tensor):
        return [state.clone()]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return [tensor for value in values for tensor in tensors(value)]


def means(state) -> list[torch.Tensor]:
    """Returns the means of gradients, and of their squares, within a state."""
    if not isinstance(state, (dict, list)):
        return []
    names = ("exp_avg", "exp_avg_sq", "momentum_buffer")
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return [found for name, value in items for found in ([value] if name in names else means(value))]
