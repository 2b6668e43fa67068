"""Options of the commands that load a language model: those of `load_model`."""

import dataclasses
import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from dictionary_learning._text_reading import named_values
from dictionary_learning.cli._arguments import CommandArguments
from dictionary_learning.cli._parser import FALSE, TRUE, option_of
from dictionary_learning.errors import ConfigError, MissingDependencyError, ModelError

if TYPE_CHECKING:
    from dictionary_learning.models import TracedModel

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelArguments(CommandArguments):
    """How the language model is loaded."""

    dtype: str | None = None
    """The model's dtype; by default that of the run whose dictionaries are read, or else bfloat16
    where the hardware is fast at it, or float32."""
    device: str | None = None
    """The device; the accelerator if there is one."""
    revision: str | None = None
    """The model's branch, tag or commit on the hub."""
    tokenizer: str | None = None
    """Another tokenizer than the model's: a name on the hub, or a local folder."""
    load_in_8bit: bool = False
    """Whether the model's weights are held in 8 bits, by bitsandbytes."""
    device_map: str | None = None
    """Spreads a model over several devices, as transformers does: auto, balanced or sequential."""
    trust_remote_code: bool = False
    """Whether code that comes with the model is run."""
    model_args: tuple[str, ...] = ()
    """Further arguments of from_pretrained, as name=value: attn_implementation=eager."""
    remote: str | None = None
    """Runs the model elsewhere, without its weights here: true for NDIF, or the address of a
    server."""

    def load(self, model: str, revision: str | None = None, dtype: str | None = None) -> "TracedModel":
        """Returns the model.

        Args:
            model: its name.
            revision: its branch, tag or commit, where the command names none.
            dtype: the same of its dtype: that of training.

        Raises:
            MissingDependencyError: 8 bits need bitsandbytes, which is not installed.
            ConfigError: it is put on one device, and spread over several; or an argument is given
                in two ways.
        """
        from dictionary_learning.models import load_model

        if self.device_map is not None and self.device is not None:
            raise ConfigError(f"Got --device {self.device} with --device-map {self.device_map}. Give one of them.")
        options = named_values(self.model_args, "--model-args")
        own = ("dtype", "device", "revision", "tokenizer", "device_map", "trust_remote_code", "remote")
        if twice := next((name for name in own if name in options), None):
            raise ConfigError(f"Got --model-args {twice}=. Give {option_of(twice)} instead.")
        if self.trust_remote_code:
            options["trust_remote_code"] = True
        if self.device_map is not None:
            options["device_map"] = self.device_map
        if self.load_in_8bit:
            options |= _in_8_bits(self.device, self.device_map)
        where = {**self.options("dtype", "device", "tokenizer"), "remote": _remote(self.remote)}
        if self.dtype is None and dtype is not None and where["remote"] is False:
            where["dtype"] = dtype
            logger.info("The model is loaded in %s, as in training; --dtype says another.", dtype)
        try:
            return load_model(model, revision=self.revision or revision, **where, **options)
        except ModelError as error:
            given = (pair.partition("=")[0] for pair in self.model_args)
            if name := next((name for name in given if f"Got {name}=" in str(error)), None):
                raise ConfigError(str(error).replace(f"Got {name}=", f"Got --model-args {name}=", 1)) from error
            raise


def _remote(word: str | None) -> bool | str:
    """Returns what `load_model` takes for a word."""
    if word is None or word.lower() in FALSE:
        return False
    return True if word.lower() in TRUE else word


def _in_8_bits(device: str | None, device_map: str | None) -> dict[str, Any]:
    """Returns the arguments by which transformers holds weights in 8 bits."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError("bitsandbytes", "--load-in-8bit")
    from transformers import BitsAndBytesConfig

    from dictionary_learning._hardware import as_device

    # such weights cannot be moved afterwards
    place = {} if device_map else {"device_map": {"": str(as_device(device))}}
    return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), **place}
