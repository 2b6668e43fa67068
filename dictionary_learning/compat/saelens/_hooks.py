"""Hooks of TransformerLens as sites of a model."""

import re

from dictionary_learning.capture._hook_names import hook_name
from dictionary_learning.errors import SiteError
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site

_HOOK = re.compile(r"blocks\.(?P<layer>\d+)\.(?P<part>(?:\w+\.)?hook_\w+)")
_MIDDLE = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")
"""Norms before the MLP, whose input is hook_resid_mid, in the order in which they decide."""


def site_of_hook(model: TracedModel, name: str) -> Site:
    """Returns the site of a hook; another name is looked up as a site of the model.

    Raises:
        SiteError: The model has no such site.
    """
    if name == "hook_embed":
        return model.sites("embedding")[0]
    match = _HOOK.fullmatch(name)
    if match is None:
        return model.sites(name)[0]
    layers, number = model.layers(), int(match["layer"])
    if number >= len(layers):
        raise SiteError(f"'{name}' is in layer {number}; the model has {len(layers)} layers, from 0.")
    path = layers[number].path
    inside = [path, *(f"{path}.{one}" for one, _ in model.module.get_submodule(path).named_modules() if one)]
    if match["part"] == "hook_resid_mid":
        norms = [f"{path}.{norm}" for norm in _MIDDLE if f"{path}.{norm}" in inside]
        if norms:
            return Site(norms[0], "in")
    # heads before the projection's input, which has the same values
    for side in ("out", "heads", "in"):
        for one in inside:
            if hook_name(f"{one}:{side}", model.name) == name:
                return model.sites(Site(one, side))[0]  # heads stand for another place
    raise SiteError(
        f"'{name}' has no site that is known in this model. Name a module, as '{path}.mlp:out', or one of its hooks "
        "hook_resid_pre, hook_resid_post, hook_mlp_out, hook_attn_out, attn.hook_z, mlp.hook_post."
    )
