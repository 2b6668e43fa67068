"""Text that a model generates while it is edited."""

import contextlib
import inspect
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dictionary_learning._border import checked, is_foreign, said, short
from dictionary_learning._brief import brief
from dictionary_learning._random_state import seeded
from dictionary_learning._types import ModelLike
from dictionary_learning.errors import ConfigError, DataError, ModelError, UnknownNameError
from dictionary_learning.interventions._attached import EditsLike, attached_for
from dictionary_learning.interventions._inputs import as_tokens
from dictionary_learning.interventions._tokens import When
from dictionary_learning.models import TracedModel, load_model

_OURS = ("inputs", "input_ids", "attention_mask", "inputs_embeds", "return_dict_in_generate")
"""Arguments of transformers' `generate` that are made here."""
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
"""What `generate` returns beside tokens, where a model's own settings ask for it."""


class Generation(NamedTuple):
    """Prompts, padded on the left, and what a model wrote after them."""

    input_ids: Int[Tensor, "rows ctx"]
    """Prompts and what follows; those of the first prompt first, if each has several."""
    mask: Bool[Tensor, "rows ctx"]
    """All tokens but padding; the first EOS that is generated counts."""
    n_prompt: int
    """Tokens before the first that is generated, padding included."""
    texts: list[str]
    """What was generated, without special tokens; empty if the model has no tokenizer."""

    __repr__ = brief

    @property
    def generated(self) -> Int[Tensor, "rows new"]:
        """The tokens that were generated, padded on the right."""
        return self.input_ids[:, self.n_prompt :]


@checked()
@torch.no_grad()
def generate(
    model: ModelLike,
    prompts: Any,
    edits: Any = (),
    *,
    when: When = "always",
    max_new_tokens: int = 32,
    special_tokens: bool = False,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Generation:
    """Generates text while a model is edited.

    Args:
        model: A Hugging Face model that generates, or what `load_model` takes.
        prompts: A text, several, token ids, or what a tokenizer returns; of different lengths they
            are padded on the left.
        edits: Functions by site, or several mappings of these, as for `attached`; none by default.
        when: Which tokens change: "always" all, those of the "prompt", or "generated" ones; the
            same with and without a cache.
        max_new_tokens: The most tokens that are generated for a prompt.
        special_tokens: Whether BOS, EOS and padding ids change too.
        generator: Draws the seed of sampling; None for the global generator.
        options: Passed on to transformers' `generate`, as do_sample, temperature, num_beams,
            min_new_tokens, num_return_sequences or use_cache.

    Raises:
        ConfigError: An option is made here, or has no effect here.
        ModelError: The model cannot generate.
        DataError: There is no prompt.
        SiteError: A site is not in the model, or an edit returns another shape.
    """
    traced = load_model(model)
    root = _generating(traced)
    _check_options(root, options)
    ids, mask = (part.cpu() for part in as_tokens(traced, prompts, padding_side="left"))
    size = traced._builder.vocabulary_size
    if size is not None and int(ids[mask].max()) >= size:
        raise DataError(f"Got token {int(ids[mask].max())}; {traced.name} has ids from 0 to {size - 1}. Give such ids.")
    n_prompt, device = ids.shape[1], traced.device
    setting = _Settings(root, options)
    options = {"pad_token_id": _padding_id(traced, setting), **options}
    options |= {name: False for name in ("return_dict_in_generate", *_OUTPUTS) if setting[name]}
    if isinstance(setting["eos_token_id"], Tensor):
        options["eos_token_id"] = _ids(setting["eos_token_id"])
    if setting["stop_strings"] and traced.tokenizer is not None:
        options = {"tokenizer": traced.tokenizer, **options}
    given = cast(EditsLike, edits)
    with attached_for(traced, given, when, special_tokens), _seeded(generator), _evaluating(root):
        made = _generated(root, ids.to(device), mask.long().to(device), max_new_tokens=max_new_tokens, **options)
    made = made.cpu()
    real = _before_the_end(made[:, n_prompt:], setting["eos_token_id"])
    if setting["stop_strings"]:
        real &= _before_padding(made[:, n_prompt:], options["pad_token_id"])
    whole = torch.cat([mask.repeat_interleave(len(made) // len(mask), 0), real], dim=1)
    texts = [] if traced.tokenizer is None else _decoded(traced.tokenizer, made[:, n_prompt:], real)
    return Generation(made, whole, n_prompt, texts)


def _generating(model: TracedModel) -> Any:
    root: Any = model._original
    if not hasattr(root, "generate") or not getattr(root, "can_generate", lambda: True)():
        raise ModelError(f"{model.name} is a {type(root).__name__}, which does not generate. Give a causal model.")
    if getattr(root.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{model.name} writes by a decoder of its own, whose first token is no prompt. Use attached, and call its "
            "generate in the block."
        )
    if model.device.type == "meta" or model._remote is not None:
        raise ModelError(f"The weights of {model.name} are on a server. Load the model here to generate.")
    return root


def _generated(root: Any, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
    try:
        made = root.generate(ids, attention_mask=mask, **options)
        made = getattr(made, "sequences", made)
        if not isinstance(made, Tensor) or made.ndim != 2 or len(made) % len(ids) or made.shape[1] < ids.shape[1]:
            raise ModelError(f"The model's generate returned {short(made)}; prompts with what follows are needed.")
        return made
    except (TypeError, ValueError) as error:  # of values that transformers checks
        if not is_foreign(error):
            raise
        raise ConfigError(f"The model does not generate with these options: {said(error)}") from error


@contextlib.contextmanager
def _evaluating(model: Any) -> Generator[None, None, None]:
    """Switches dropout off inside a block; a model that was built by hand has it on."""
    modules = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in modules:
            module.training = True


def _check_options(root: Any, options: Mapping[str, Any]) -> None:
    """Raises ConfigError for arguments that are made here, or that transformers does not know."""
    functions = (root.generate, root.forward)
    known = {
        *vars(root.generation_config),
        "tokenizer",
        *(name for each in functions for name in inspect.signature(each).parameters),
    }
    for name in options:
        if name in _OUTPUTS and options[name]:
            raise ConfigError(f"Got {name}, and generate returns tokens only. Use attached, and call model.generate.")
        if name == "max_length":
            raise ConfigError("Got max_length, and new tokens are counted here. Give max_new_tokens.")
        if name in _OURS:
            raise ConfigError(f"Got {name}, which generate makes of the prompts. Leave it out, or use attached.")
        if name not in known:
            raise UnknownNameError("argument of generate", name, [one for one in known if not one.startswith("_")])


class _Settings:
    """What holds while a model generates: options, a config among them, then the model's own."""

    def __init__(self, root: Any, options: Mapping[str, Any]):
        configs = (options.get("generation_config"), root.generation_config)
        self._configs = [one for one in configs if one is not None]
        self._options = options

    def __getitem__(self, name: str) -> Any:
        if name in self._options:
            return self._options[name]
        found = (getattr(one, name, None) for one in self._configs)
        return next((value for value in found if value is not None), None)


def _padding_id(model: TracedModel, setting: _Settings) -> int:
    """Returns the id that fills rows which have ended."""
    own = setting["pad_token_id"], getattr(model.tokenizer, "pad_token_id", None)
    eos = _ids(setting["eos_token_id"])
    return next((one for one in own if isinstance(one, int)), eos[0] if eos else 0)


def _ids(given: Any) -> list[int]:
    """Returns the ids of one token or of several, or raises ConfigError."""
    several: Any = given.flatten().tolist() if isinstance(given, Tensor) else given
    several = several if isinstance(several, (list, tuple)) else [several]
    found = [one.item() if hasattr(one, "item") else one for one in several if one is not None]
    if not all(type(one) is int for one in found):
        raise ConfigError(f"Got eos_token_id={short(given)}; give the id of a token, or a list of ids.")
    return found


@contextlib.contextmanager
def _seeded(generator: torch.Generator | None) -> Generator[None, None, None]:
    """Seeds torch from a generator inside a block; transformers samples with torch's own state."""
    if generator is None:
        yield
        return
    # of a generator that is kept, the next call draws another seed
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with seeded(seed):
        yield


def _before_the_end(ids: Int[Tensor, "rows new"], eos: Any) -> Bool[Tensor, "rows new"]:
    """Returns the tokens up to the first EOS."""
    ends = torch.isin(ids, torch.tensor(_ids(eos), dtype=ids.dtype)).long()
    return (ends.cumsum(-1) - ends) == 0


def _before_padding(ids: Int[Tensor, "rows new"], pad: int) -> Bool[Tensor, "rows new"]:
    """Returns the tokens up to the last that is no padding; a stop string is no token that ends."""
    return (ids != pad).flip(1).cumsum(1).flip(1) > 0


def _decoded(tokenizer: Any, ids: Tensor, real: Tensor) -> list[str]:
    rows = zip(ids, real, strict=True)
    return [tokenizer.decode(row[kept].tolist(), skip_special_tokens=True) for row, kept in rows]
