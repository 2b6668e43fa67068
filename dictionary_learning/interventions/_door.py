"""Changes to the latents of any dictionary, at the sites that it knows."""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._brief import brief
from dictionary_learning._types import ModelLike, SubmodulesLike
from dictionary_learning.capture._ordinary import CHANGES_SPECIAL, ordinary, special_ids
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.interventions._activations import TokenMask, check_keep, putting, token_mask
from dictionary_learning.interventions._inputs import as_tokens
from dictionary_learning.interventions._latents import LatentChange, change_of, with_rows
from dictionary_learning.interventions._places import Places, places_of
from dictionary_learning.interventions._wires import known_too_late, wired
from dictionary_learning.models import Edit, load_model
from dictionary_learning.sites import Site


class EditedText(NamedTuple):
    """The arguments of `TracedModel.run`: tokens, and edits that were made for them."""

    input_ids: Int[Tensor, "batch ctx"]
    attention_mask: Bool[Tensor, "batch ctx"]
    edits: dict[Site, Edit]

    __repr__ = brief


@checked()
def latent_edits(
    model: ModelLike,
    dictionary: Dictionary,
    *,
    site: SubmodulesLike | None = None,
    target: SubmodulesLike | None = None,
    keep_error: bool = True,
    keep: TokenMask | None = None,
    **changes: Any,
) -> dict[Site, Edit]:
    """Changes latents of any dictionary while the model runs or generates.

    At each site y that the dictionary writes, y <- y + decode(f') - decode(f). Latents f are those
    of what the model computes in the same pass, with all edits at earlier sites. So a latent of a
    cross-layer transcoder changes all layers that it writes.

    Args:
        model: The language model.
        dictionary: An autoencoder, a transcoder, a cross-layer transcoder, or one of heads.
        site: The sites that it reads; by default those that its `info` names.
        target: The sites that it writes; by default those that its `info` names.
        keep_error: Whether the part that the dictionary does not explain stays.
        keep: Which tokens change, of those that the run with the edits changes; by default all.
        changes: `ablate`, `clamp`, `scale` and `add`, as in `edit_latents`.

    Raises:
        ConfigError: A latent does not exist; the sites are not known or do not fit; or the latents
            depend on sites that the model reaches after one that they write, as in a crosscoder.
    """
    check_keep(keep)
    traced = load_model(model)
    change = change_of(dictionary, changes)
    reads, writes = places_of(traced, dictionary, site, target)
    late = known_too_late(dictionary, reads, writes, traced.in_order(list({**reads, **writes})))
    if late:
        raise ConfigError(
            f"Latents of this {type(dictionary).__name__} depend on '{late[1]}', which the model reaches after "
            f"'{late[0]}', where they write. Give the text: latent_edits_for(model, dictionary, inputs, ...) takes "
            "them from a pass of their own. While a model generates, that cannot be done."
        )
    return wired(dictionary, change.added, reads, writes, keep=keep, keep_error=keep_error)


@checked()
@torch.no_grad()
def latent_edits_for(
    model: ModelLike,
    dictionary: Dictionary,
    inputs: Any,
    *,
    onto: Literal["clean", "running"] = "clean",
    site: SubmodulesLike | None = None,
    target: SubmodulesLike | None = None,
    keep_error: bool = True,
    keep: TokenMask | None = None,
    special_tokens: bool = False,
    **changes: Any,
) -> EditedText:
    """Changes latents of any dictionary on a given text; for crosscoders.

    Two passes: latents f are those of the unchanged model on the text, so they may depend on all
    its layers. `model.run(*latent_edits_for(...))` is the second pass.

    Args:
        model: The language model.
        dictionary: Any dictionary.
        inputs: A text, several, or token ids.
        onto: "clean": a site becomes what it was in the unchanged model, plus decode(f') -
            decode(f). So a change at an early site does not count again at a later one that it
            flows into; nor does any other edit before. "running": what the changed model computes
            at the site, plus the same.
        site: The sites that it reads; by default those that its `info` names.
        target: The sites that it writes; by default those that its `info` names.
        keep_error: Whether the part that the dictionary does not explain stays. Without it, a site
            becomes decode(f').
        keep: Which tokens change, of those that are not special; by default all.
        special_tokens: Whether BOS, EOS and padding ids change too.
        changes: `ablate`, `clamp`, `scale` and `add`, as in `edit_latents`.

    Returns:
        The tokens, their mask, and edits that fit these tokens only.

    Raises:
        ConfigError: A latent does not exist, or the sites are not known or do not fit.
        DataError: There is no text.
    """
    check_keep(keep)
    traced = load_model(model)
    change = change_of(dictionary, changes)
    places = places_of(traced, dictionary, site, target)
    ids, real = as_tokens(traced, inputs)
    mask = ordinary(ids, real, () if special_tokens else special_ids(traced))
    if keep is not None:
        mask &= token_mask(keep, ids.unsqueeze(-1)).to(mask.device)
    clean = traced.capture(ids, real, list({**places.reads, **places.writes}))
    outputs, added = _results(dictionary, change, places, clean, mask)
    edits: dict[Site, Edit] = {}
    for one, place in places.writes.items():
        y = clean[one]
        base = y[mask.to(y.device)] if keep_error else outputs[:, place]
        changed = with_rows(y, mask, base.to(added) + added[:, place])  # (batch, ctx, dim)
        is_sum = onto == "running" and keep_error
        edits[one] = _plus(with_rows(torch.zeros_like(y), mask, added[:, place])) if is_sum else putting(changed, mask)
        setattr(edits[one], CHANGES_SPECIAL, special_tokens)
    return EditedText(ids, real, edits)


def _results(
    dictionary: Dictionary, change: LatentChange, places: Places, clean: Any, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns outputs for the unchanged model, and what the change adds: both (n, output_dim)."""
    parts = [clean[site][mask.to(clean[site].device)].to(dictionary.device, dictionary.dtype) for site in places.reads]
    rows = torch.cat(parts, dim=-1)  # (n, activation_dim)
    made = dictionary.reconstruct_contexts(rows, mask.sum(-1).to(dictionary.device))
    return made.outputs, change.added(dictionary, made.latents, rows)


def _plus(added: Tensor) -> Edit:
    def edit(x: Tensor) -> Tensor:
        if x.shape != added.shape:
            raise ConfigError(
                f"The edit was made for a text of shape {tuple(added.shape[:2])}, and the model reads "
                f"{tuple(x.shape[:2])}. Run it with the tokens that latent_edits_for returned."
            )
        return x + added.to(x.device, x.dtype)

    return edit
