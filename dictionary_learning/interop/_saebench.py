"""A dictionary as SAEBench's evaluations and tools for SAELens's dictionaries expect one.

Encoders are (activation_dim, dict_size) there, decoders (dict_size, activation_dim) with rows of
unit norm, and `cfg` has the settings. Nothing of those packages is imported.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dictionary_learning._border import checked
from dictionary_learning.capture._hook_names import hook_name as hook_at, layer_of
from dictionary_learning.dictionaries import Coder, Dictionary, DictionaryInfo, expand_or_convert, fold_decoder_norm_
from dictionary_learning.dictionaries.nonlinearities import BatchTopK, Gated
from dictionary_learning.errors import ConfigError


@dataclasses.dataclass
class CustomConfig:
    """Settings by the names of SAEBench and SAELens."""

    model_name: str
    d_in: int
    d_sae: int
    hook_name: str
    hook_layer: int
    architecture: str
    dtype: str
    device: str
    context_size: int = 128
    hook_head_index: int | None = None
    activation_fn_str: str = ""
    apply_b_dec_to_input: bool = True
    prepend_bos: bool = True
    normalize_activations: str = "none"
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple = (None,)
    model_from_pretrained_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    neuronpedia_id: str | None = None
    training_tokens: int = -1
    sae_lens_training_version: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain data."""
        return dataclasses.asdict(self)


class CustomSAE(nn.Module):
    """A dictionary behind the interface of SAEBench's custom SAEs."""

    def __init__(self, dictionary: Coder, cfg: CustomConfig):
        super().__init__()
        self.dictionary, self.cfg = dictionary, cfg
        self.use_error_term = False

    @property
    def W_enc(self) -> Float[Tensor, "activation_dim dict_size"]:
        return self.dictionary.W_enc.T  # a view, so that changes reach the dictionary

    @property
    def W_dec(self) -> Float[Tensor, "dict_size activation_dim"]:
        return self.dictionary.W_dec

    @property
    def b_enc(self) -> Float[Tensor, "dict_size"]:
        """The encoder's bias; zeros where the nonlinearity has the biases."""
        bias = self.dictionary.b_enc
        return self.W_dec.new_zeros(self.dictionary.dict_size) if bias is None else bias

    @property
    def b_mag(self) -> Float[Tensor, "dict_size"]:
        """The bias of the magnitudes of a gated autoencoder; the encoder's bias of others."""
        nonlinearity = self.dictionary.nonlinearity
        return nonlinearity.mag_bias if isinstance(nonlinearity, Gated) else self.b_enc

    @property
    def b_dec(self) -> Float[Tensor, "activation_dim"]:
        """The decoder's bias; zeros where there is none."""
        bias = self.dictionary.b_dec
        return self.W_dec.new_zeros(self.dictionary.output_dim) if bias is None else bias

    @property
    def device(self) -> torch.device:
        return self.dictionary.device

    @property
    def dtype(self) -> torch.dtype:
        return self.dictionary.dtype

    def encode(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the latents, dense, in the dtype of the parameters."""
        return self.dictionary.encode(x).to(self.dtype)

    def decode(self, feature_acts: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch activation_dim"]:
        return self.dictionary.decode(feature_acts).to(self.dtype)

    def forward(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch activation_dim"]:
        return self.dictionary(x).to(self.dtype)

    def to(self, *args: Any, **kwargs: Any) -> "CustomSAE":
        """Moves or casts the dictionary, and updates the settings."""
        super().to(*args, **kwargs)
        self.cfg.device, self.cfg.dtype = str(self.device), str(self.dtype).removeprefix("torch.")
        return self


@checked()
def as_custom_sae(
    dictionary: Dictionary,
    config: Mapping[str, Any] | None = None,
    *,
    model_name: str | None = None,
    hook_name: str | None = None,
    hook_layer: int | None = None,
    context_size: int = 128,
) -> CustomSAE:
    """Returns a dictionary as SAEBench expects it, with unit decoder rows where possible.

    Args:
        dictionary: an autoencoder of one site; the result shares no tensors with it.
        config: what is known about the dictionary; `dictionary.info` by default.
        model_name: the model, by its name in TransformerLens.
        hook_name: the hook in TransformerLens, such as "blocks.5.hook_resid_post".
        hook_layer: the layer; by default the one in the hook's name.
        context_size: tokens of a context.

    Raises:
        ConfigError: the dictionary predicts other activations than it reads, or needs them to
            decode, or its model or hook is not known.
    """
    if not isinstance(dictionary, Coder) or dictionary.W_skip is not None:
        raise ConfigError(
            "SAEBench decodes latents alone, and takes autoencoders of one site; this is a "
            f"{type(dictionary).__name__}. Evaluate it with this package's evaluate_dictionaries."
        )
    info = dictionary.info if config is None else DictionaryInfo.from_config(config)
    model_name = model_name or info.model
    hook_name = hook_name or (hook_at(info.sites[0], model_name) if len(info.sites) == 1 else None)
    hook_layer = layer_of(hook_name or "") if hook_layer is None else hook_layer
    if model_name is None or hook_name is None or hook_layer is None:
        raise ConfigError(
            "It is not known which model and which hook of TransformerLens the dictionary is of, or the hook's layer. "
            "Give model_name=, hook_name= and hook_layer=."
        )
    own = _with_unit_rows(dictionary).requires_grad_(False)
    kind = type(own.nonlinearity).__name__.lower()
    cfg = CustomConfig(
        model_name=model_name,
        d_in=own.activation_dim,
        d_sae=own.dict_size,
        hook_name=hook_name,
        hook_layer=hook_layer,
        architecture=kind,
        activation_fn_str=kind,
        dtype=str(own.dtype).removeprefix("torch."),
        device=str(own.device),
        context_size=context_size,
        apply_b_dec_to_input=own.centered,
    )
    return CustomSAE(own, cfg)


def _with_unit_rows(dictionary: Coder) -> Coder:
    """Returns a copy with unit decoder rows, unless the dictionary ranks latents by value."""
    own = copy.deepcopy(dictionary)
    if isinstance(own.nonlinearity, BatchTopK) and float(own.nonlinearity.threshold) >= 0 and not own.rank_by_norm:
        own = expand_or_convert(own, nonlinearity={"name": "jump_relu"})  # the same at inference
    try:
        fold_decoder_norm_(own)
    except ConfigError:
        return copy.deepcopy(dictionary)
    return own
