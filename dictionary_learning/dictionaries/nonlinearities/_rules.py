"""Rules by which k latents of a token are chosen: by group, by absolute value, by value."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities._base import NONLINEARITIES, RuleSelection


@NONLINEARITIES.register("abs_top_k")
class AbsTopK(RuleSelection):
    """Keeps the k pre-activations of each token with the largest absolute value, with their signs.

    One latent can stand for a concept and its opposite.
    AbsTopK, 2025, https://arxiv.org/abs/2510.00404.
    """

    is_signed = True

    def choose(self, pre: Float[Tensor, "*batch dict_size"], k: int) -> Int[Tensor, "*batch k"]:
        return pre.abs().topk(k, dim=-1, sorted=False).indices


@NONLINEARITIES.register("top_k_unrectified")
class TopKUnrectified(RuleSelection):
    """Keeps the k largest pre-activations of each token, whatever their sign.

    OpenAI's sparse_autoencoder has it as TopK followed by the identity.
    """

    is_signed = True

    def choose(self, pre: Float[Tensor, "*batch dict_size"], k: int) -> Int[Tensor, "*batch k"]:
        return pre.topk(k, dim=-1, sorted=False).indices


@NONLINEARITIES.register("group_max", "groupmax")
class GroupMax(RuleSelection):
    """Keeps the largest of relu(pre) in each of k groups of neighboring latents.

    Groups are equally large where k divides dict_size; else the first groups have one latent more.
    EleutherAI's sparsify has it where k divides dict_size.
    """

    is_masked_relu = True

    def choose(self, pre: Float[Tensor, "*batch dict_size"], k: int) -> Int[Tensor, "*batch k"]:
        size, n_larger = divmod(pre.shape[-1], k)
        border = n_larger * (size + 1)  # where groups with one latent more end
        parts: list[Tensor] = []
        for stretch, start, n in ((pre[..., :border], 0, size + 1), (pre[..., border:], border, size)):
            if stretch.shape[-1]:
                starts = torch.arange(stretch.shape[-1] // n, device=pre.device) * n + start
                parts.append(stretch.unflatten(-1, (-1, n)).argmax(-1) + starts)  # (..., groups)
        return torch.cat(parts, dim=-1)

    def value(self, pre: Tensor) -> Tensor:
        return pre.relu()
