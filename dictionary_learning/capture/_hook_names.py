"""Sites by the names of TransformerLens, which SAELens, SAEBench and Neuronpedia use."""

import re
from collections.abc import Iterable

from dictionary_learning.errors import SiteError
from dictionary_learning.sites import Side, Site

_LAYER = re.compile(r"(?P<before>.*?)(?:layers|h|blocks)\.(?P<layer>\d+)(?:\.(?P<part>.+))?")
_BEFORE = ("", "model.", "transformer.", "gpt_neox.", "model.decoder.", "model.language_model.", "backbone.")
"""Prefixes of a language model's layers. Vision towers and encoders have other hooks."""
_LABEL = re.compile(r"(resid_pre|resid_post|mlp_out|attn_out)_layer_(\d+)")
"""Labels in configs of dictionary_learning before this package."""
_SIDES: tuple[Side, ...] = ("in", "out")
_HOOKS = {
    r":in": "hook_resid_pre",
    r":out": "hook_resid_post",
    r":heads": "attn.hook_z",
    r"(self_attn|attn|attention|self_attention):out": "hook_attn_out",
    r"(self_attn|attn|attention|self_attention)\.(o_proj|c_proj|dense|out_proj):in": "attn.hook_z",
    r"(self_attn|attn|attention|self_attention):heads": "attn.hook_z",
    r"(mlp|feed_forward):out": "hook_mlp_out",
    r"(mlp|feed_forward)\.(down_proj|c_proj|dense_4h_to_h|fc_out):in": "mlp.hook_post",
}
"""Hooks by the part of a site behind the layer's number."""
_POST_NORMED = {
    "post_attention_layernorm:out": "hook_attn_out",
    "post_feedforward_layernorm:out": "hook_mlp_out",
}
"""Hooks of models that normalize what attention and MLP return: they are behind the norms."""
_POST_NORMED_MODELS = re.compile(r"gemma-?[23]", re.IGNORECASE)


def hook_name(site: str | Site, model: str | None = None) -> str | None:
    """Returns the hook of TransformerLens at a site; None if there is none with certainty.

    Args:
        site: the site, such as "model.layers.10:out"; a name that is a hook already is returned as
            it is.
        model: the name of the language model; for Gemma 2 and 3, `hook_mlp_out` is not what the MLP
            returns.
    """
    text = str(site)
    if is_hook(text):
        return text
    label = _LABEL.fullmatch(text)
    if label is not None:
        return f"blocks.{label[2]}.hook_{label[1]}"
    # Gemma Scope 2 writes "layers.5.output"
    text = re.sub(r"\.(in|out)put$", lambda match: f":{match[1]}", text)
    try:
        parsed = Site.parse(text)
    except SiteError:
        return None
    match = _LAYER.fullmatch(parsed.path)
    if match is None or match["before"] not in _BEFORE or parsed.index != 0:  # no layer, or a second output
        return None
    part = f"{match['part'] or ''}:{parsed.side}"
    hooks = dict(_HOOKS)
    if _POST_NORMED_MODELS.search(model or ""):
        hooks = {pattern: hook for pattern, hook in hooks.items() if hook not in _POST_NORMED.values()} | _POST_NORMED
    found = next((hook for pattern, hook in hooks.items() if re.fullmatch(pattern, part)), None)
    return None if found is None else f"blocks.{match['layer']}.{found}"


def is_hook(name: str) -> bool:
    """Returns whether a name is one of TransformerLens."""
    return re.fullmatch(r"(blocks\.\d+\.)?([\w.]+\.)?hook_\w+", name) is not None


def site_of_hook(name: str, paths: Iterable[str], model: str) -> Site:
    """Returns the site of a model where TransformerLens has a hook.

    Args:
        name: the hook.
        paths: the model's modules.
        model: its name, or more words that tell its architecture.

    Raises:
        SiteError: there is none, or several may be meant.
    """
    found = [site for path in paths for side in _SIDES if hook_name(site := Site(path, side), model) == name]
    if len(found) != 1:
        several = f"; it may be {', '.join(map(str, found))}" if found else ""
        raise SiteError(
            f"'{name}' is a hook of TransformerLens, and no one module of the model has its activations{several}. "
            "Give a site, such as 'model.layers.10:out'."
        )
    return found[0]


def layer_of(name: str) -> int | None:
    """Returns the number of the layer in the name of a hook."""
    match = re.match(r"blocks\.(\d+)\.", name)
    return None if match is None else int(match[1])


def model_name(name: str) -> str | None:
    """Returns the model's name in TransformerLens, which is that of the hub; None for a folder."""
    is_path = name.startswith((".", "/", "~")) or "\\" in name or ":" in name or name.count("/") > 1
    return None if is_path or not name else name
