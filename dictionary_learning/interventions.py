"""Changes to a model's activations: plain functions that take a site's activations and return new ones.

Each makes an `Edit` for `TracedModel.run`; they can be called in the body of an nnsight trace as well.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.models import Edit
from dictionary_learning.sites import Site


def graft(dictionary: Dictionary, keep: Bool[Tensor, "batch ctx"] | None = None) -> Edit:
    """Puts the dictionary's reconstruction in place of the activations.

    Args:
        dictionary: the dictionary; it works in its own dtype, and the result is cast back.
        keep: the tokens that are reconstructed; the others keep their activations. All, if not given.
    """

    def edit(x: Float[Tensor, "batch ctx dim"]) -> Float[Tensor, "batch ctx dim"]:
        return _with_reconstructions(dictionary, x, x, keep)

    return edit


def graft_across(
    dictionary: Dictionary, read: Site, write: Site, keep: Bool[Tensor, "batch ctx"] | None = None
) -> dict[Site, Edit]:
    """Puts what a transcoder predicts from one site in place of the activations at another, which the model reaches later.

    Args:
        dictionary: the transcoder.
        read: the site that it reads.
        write: the site whose activations it predicts.
        keep: the tokens that are replaced. All, if not given.

    Returns:
        The edits of one forward pass.
    """
    seen: list[Tensor] = []

    def remember(x: Float[Tensor, "batch ctx dim"]) -> None:
        seen[:] = [x]

    def replace(y: Float[Tensor, "batch ctx dim"]) -> Float[Tensor, "batch ctx dim"]:
        (x,) = seen
        return _with_reconstructions(dictionary, x, y, keep)

    return {read: remember, write: replace}


def put(value: Float[Tensor, "batch ctx dim"], keep: Bool[Tensor, "batch ctx"] | None = None) -> Edit:
    """Puts given values in place of the activations.

    Args:
        value: what takes their place.
        keep: the tokens that are replaced. All, if not given.
    """

    def edit(x: Float[Tensor, "batch ctx dim"]) -> Float[Tensor, "batch ctx dim"]:
        new = value.to(x.device, x.dtype)
        return new if keep is None else torch.where(keep.to(x.device).unsqueeze(-1), new, x)

    return edit


def ablate(value: Float[Tensor, "dim"] | float = 0.0, keep: Bool[Tensor, "batch ctx"] | None = None) -> Edit:
    """Puts one value in place of the activations of each token: zero, or their mean over a data set.

    Args:
        value: what takes the activations' place.
        keep: the tokens that are ablated. All, if not given.
    """

    def edit(x: Float[Tensor, "batch ctx dim"]) -> Float[Tensor, "batch ctx dim"]:
        constant = torch.as_tensor(value, device=x.device).to(x.dtype).expand_as(x)
        return constant if keep is None else torch.where(keep.to(x.device).unsqueeze(-1), constant, x)

    return edit


def steer(direction: Float[Tensor, "dim"], scale: float = 1.0, keep: Bool[Tensor, "batch ctx"] | None = None) -> Edit:
    """Adds a multiple of a direction, as a row of W_dec, to the activations of each token.

    Args:
        direction: what is added.
        scale: the multiple.
        keep: the tokens that are steered. All, if not given.
    """

    def edit(x: Float[Tensor, "batch ctx dim"]) -> Float[Tensor, "batch ctx dim"]:
        moved = x + scale * direction.to(x.device, x.dtype)
        return moved if keep is None else torch.where(keep.to(x.device).unsqueeze(-1), moved, x)

    return edit


def _with_reconstructions(dictionary: Dictionary, x: Tensor, y: Tensor, keep: Tensor | None) -> Tensor:
    """Returns y with what the dictionary makes of x in its place, where it is kept; the dictionary sees no other tokens."""
    inside = x.to(dictionary.device, dictionary.dtype)
    if keep is None:
        return dictionary(inside).to(y.device, y.dtype)
    keep = keep.to(inside.device)
    outputs = dictionary.reconstruct_contexts(inside[keep], keep.sum(-1)).outputs
    return y.masked_scatter(keep.to(y.device).unsqueeze(-1), outputs.to(y.device, y.dtype))
