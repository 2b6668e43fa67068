"""Which tokens an edit may change: those that are neither padding nor special.

No dictionary was trained on BOS, whose activations are of another size: what its latents say there
means nothing.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from dictionary_learning._module_io import apply_edit
from dictionary_learning.capture._model_inputs import ModelInputs, is_ids
from dictionary_learning.capture._tracing import Edit
from dictionary_learning.sites import Site

CHANGES_SPECIAL = "changes_special"
"""An edit's attribute: whether it was made, for one text, to change special tokens too."""


def special_ids(model: Any) -> tuple[int, ...]:
    """Returns the ids of BOS, EOS and padding, and of what BERT has instead of the first two.

    By the tokenizer or else the model's config, and by how the model generates: chat models have
    several EOS, of which a tokenizer knows one.
    """
    known: Any = getattr(model.module, "config", None) if model.tokenizer is None else model.tokenizer
    generating: Any = getattr(model.module, "generation_config", None)
    found = [getattr(known, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "cls", "sep")]
    found.append(getattr(generating, "eos_token_id", None))
    several = [one for each in found for one in (cast(Any, each) if isinstance(each, (list, tuple)) else [each])]
    return tuple(one for one in several if isinstance(one, int))


def ordinary(
    ids: Int[Tensor, "batch ctx"], mask: Bool[Tensor, "batch ctx"], special: tuple[int, ...]
) -> Bool[Tensor, "batch ctx"]:
    """Returns which tokens are neither padding nor special."""
    return mask & ~torch.isin(ids, torch.tensor(special, dtype=ids.dtype, device=ids.device))


def real_of(mask: Any, batch: int, ctx: int, n_before: int = 0) -> Bool[Tensor, "batch ctx"] | None:
    """Returns which of the newest tokens are no padding, by an attention mask; None if it is none.

    It is (batch, tokens before and now) or says who reads whom, (batch, heads, now, places of a
    cache and now), True or 0 where a token may be read. By the latter, padding is what does not
    read itself, as padding is read by none; transformers lets the rows of padding on the left read
    everything, since a row that reads nothing gives NaN.

    Args:
        mask: The mask, or several, as of models with layers of two kinds.
        batch: Number of texts.
        ctx: Number of new tokens.
        n_before: Tokens in the cache, if there is one.
    """
    if isinstance(mask, Mapping) and mask:
        return real_of(next(iter(cast(Mapping[str, Any], mask).values())), batch, ctx, n_before)
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4) or mask.shape[-1] < ctx:
        return None
    if mask.ndim == 2:
        return mask[:, -ctx:].bool().expand(batch, ctx)
    if mask.shape[2] != ctx or mask.shape[3] < n_before + ctx:
        return None
    reads = (mask if mask.dtype == torch.bool else mask == 0).any(1)[..., n_before : n_before + ctx]
    reads_all = reads.all(-1)  # (batch, now)
    # the last token may read all before it; and all may, in both directions and without padding
    is_open = reads_all & ~reads_all.all(-1, keepdim=True)
    is_open[:, -1] = False
    return (reads.diagonal(dim1=1, dim2=2) & ~is_open).expand(batch, ctx)


def sparing_special(edits: Mapping[Site, Edit], inputs: ModelInputs, model: Any) -> dict[Site, Edit]:
    """Returns edits that leave BOS, EOS and padding of these inputs as they are."""
    special, encoder, found = special_ids(model), encoder_of(model.module), dict(edits)
    for site, edit in edits.items():
        mask = _ordinary_of(inputs, special, is_encoder=model.module.get_submodule(site.path) in encoder)
        if mask is not None and not mask.all():
            found[site] = _sparing(edit, mask, site)
    return found


def _ordinary_of(inputs: ModelInputs, special: tuple[int, ...], *, is_encoder: bool) -> Tensor | None:
    """Returns the same of a model's inputs: of the decoder's, if there are two texts.

    None if they are no token ids.
    """
    given = inputs.kwargs
    prefix = "" if is_encoder or "decoder_input_ids" not in given else "decoder_"
    ids = given.get(f"{prefix}input_ids", inputs.args[0] if inputs.args else None)
    if not isinstance(ids, Tensor) or not is_ids(ids):
        return None
    mask = real_of(given.get(f"{prefix}attention_mask"), *ids.shape)
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device)
    return ordinary(ids, mask, special)


def _sparing(edit: Edit, mask: Bool[Tensor, "batch ctx"], site: Site) -> Edit:
    """Returns an edit that changes the tokens of a mask only, where activations are of tokens."""
    if getattr(edit, CHANGES_SPECIAL, False):
        return edit

    def edit_ordinary(x: Tensor) -> Tensor | None:
        new = apply_edit(edit, x.clone(), site)
        if new is None or x.shape[:2] != mask.shape:
            return new
        return torch.where(mask.to(x.device).unsqueeze(-1), new.to(x.device, x.dtype), x)

    return edit_ordinary


def encoder_of(root: Any) -> frozenset[nn.Module]:
    """Returns the modules of the encoder of a model that has a decoder too."""
    if not getattr(getattr(root, "config", None), "is_encoder_decoder", False) or not hasattr(root, "get_encoder"):
        return frozenset()
    found: Any = root.get_encoder()
    return frozenset(found.modules()) if isinstance(found, nn.Module) else frozenset()
