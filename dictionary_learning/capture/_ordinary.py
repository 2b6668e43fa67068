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
    mask = given.get(f"{prefix}attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        mask = torch.ones_like(ids)
    return ordinary(ids, mask.bool(), special)


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
