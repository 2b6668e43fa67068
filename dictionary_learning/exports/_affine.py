"""An encoder, a threshold and a decoder that compute what a coder computes."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries import Coder
from dictionary_learning.dictionaries.nonlinearities import BatchTopK, Gated, JumpReLU, ReLU, SparseSelection, TopK
from dictionary_learning.errors import CheckpointError


class AffineForm(NamedTuple):
    """z = W_enc x + b_enc, latents = z * 1[z > threshold], x_hat = latents W_dec + b_dec.

    Without a threshold, latents = relu(z). All in float32.
    """

    W_enc: Float[Tensor, "dict_size activation_dim"]
    b_enc: Float[Tensor, "dict_size"]
    W_dec: Float[Tensor, "dict_size output_dim"]
    b_dec: Float[Tensor, "output_dim"] | None
    W_skip: Float[Tensor, "output_dim activation_dim"] | None
    threshold: Float[Tensor, "dict_size"] | None


@torch.no_grad()
def affine_form(coder: Coder, *, keep_k: int | None = None) -> AffineForm:
    """Returns a coder's affine form: b_dec that is subtracted, gates and norms are folded in.

    TopK and BatchTopK get their learned threshold: with it, as many latents are active on average.

    Args:
        coder: Is not changed.
        keep_k: The k of a TopK whose largest latents the reader selects itself; no threshold then.

    Raises:
        CheckpointError: The latents have no such form, or no threshold was learned.
    """
    nonlinearity = coder.nonlinearity
    if not isinstance(nonlinearity, (ReLU, JumpReLU, Gated, TopK, BatchTopK)):
        raise CheckpointError(
            f"Latents of {type(nonlinearity).__name__} are no function z * 1[z > threshold] of an affine z. Export a "
            "dictionary with relu, jump_relu, gated, top_k or batch_top_k, or convert it by "
            "expand_or_convert(..., nonlinearity='jump_relu')."
        )
    form = nonlinearity.threshold_form()
    W_enc, scale = coder.W_enc.double(), torch.as_tensor(form.scale, device=coder.device).double()
    b_enc = W_enc.new_zeros(coder.dict_size) if coder.b_enc is None else coder.b_enc.double()
    if coder.apply_b_dec_to_input and coder.b_dec is not None:
        b_enc = b_enc - W_enc @ coder.b_dec.double()
    bias = torch.as_tensor(form.bias, device=coder.device).double()
    threshold = form.threshold
    if keep_k is not None:
        threshold = None
    elif threshold is None and isinstance(nonlinearity, SparseSelection):
        raise CheckpointError(
            f"This {type(nonlinearity).__name__} has learned no threshold (it is -1). Train it for a step, or estimate "
            "one on activations: calibrate(dictionary, activations)."
        )
    if threshold is not None:
        threshold = threshold.double()
        if coder.rank_by_norm and isinstance(nonlinearity, SparseSelection):
            threshold = threshold / coder.ranking_norms().double()  # value times norm is compared with it
        threshold = threshold.expand(coder.dict_size).float()
    return AffineForm(
        (W_enc * scale.reshape(-1, 1)).float(),
        (b_enc * scale + bias).float(),
        coder.W_dec.detach().float(),
        None if coder.b_dec is None else coder.b_dec.detach().float(),
        None if coder.W_skip is None else coder.W_skip.detach().float(),
        None if isinstance(nonlinearity, ReLU) else threshold,
    )
