"""Names of sparsify that have no counterpart, and what to use instead."""

_DECODED = "sae.decode(top_acts, top_indices) decodes; which backend does it is chosen by dictionary_learning.ops"
_OPTIMIZED = "The optimizer is a setting: TrainConfig(optimizer=...) here, or optimizer= of every trainer of trainSAE"

NAMES: dict[str, str] = {
    "RunConfig": "It is the command's: python -m dictionary_learning.compat.sparsify --help. TrainConfig has the "
    "settings of training",
    "decoder_impl": _DECODED,
    "eager_decode": _DECODED,
    "triton_decode": _DECODED,
    "fused_encoder": "sae.encode(x) encodes, and keeps the k largest latents",
    "FusedEncoder": "sae.encode(x) encodes, and keeps the k largest latents",
    "get_layer_list": "load_model(model).layers() returns the places of the layers",
    "resolve_widths": "load_model(model).widths(sites) returns the width of each site",
    "set_submodule": "Edits replace what a module returns: attached(model, edits) of dictionary_learning.interventions",
    "simple_parse_args_string": "Options of a data set are arguments of dictionary_learning.data.as_source",
    "Muon": _OPTIMIZED,
    "SignSGD": _OPTIMIZED,
}
"""Names of `sparsify`, of its modules and of `sae`."""
