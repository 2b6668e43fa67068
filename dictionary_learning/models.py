"""Loads models by name or wraps them: a `TracedModel` reads and writes activations at any `Site`.

Its `capture` stops after the last site; `run` goes on to the prediction, and lets functions replace
activations. Both take what the model takes. The caller's model object is never changed.
"""

import contextlib
import importlib
import importlib.util
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dictionary_learning._border import checked
from dictionary_learning._hardware import as_device, fast_dtype, free_memory, is_of_memory
from dictionary_learning._module_io import Channels
from dictionary_learning._plain import as_bytes
from dictionary_learning._progress import other_bars
from dictionary_learning._types import ModelLike
from dictionary_learning.capture import Edit, InputsLike, TracedModel
from dictionary_learning.capture._remote import RemoteTracer
from dictionary_learning.errors import (
    ConfigError,
    DictionaryLearningError,
    MissingDependencyError,
    ModelError,
    did_you_mean,
)

__all__ = ["Edit", "InputsLike", "TracedModel", "load_model"]

_ON_THE_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "float64")}
_SAVED = ("config.json", "adapter_config.json")
"""Files of which a folder of a saved model has one."""
_SAVED_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)
"""Files of which a folder of a saved tokenizer has one, where it has no config."""

if TYPE_CHECKING:
    _Model = TracedModel
else:
    _Model = Any  # a `ModelSet` is returned as it is, and serves where only activations are needed


def called(model: Mapping[str, Any]) -> str:
    """Returns what people call a model of which `describe` was stored; "" if nothing is known."""
    return str(model.get("name") or model.get("label") or "")


def shown_name(model: Mapping[str, Any] | str) -> str:
    """Returns the same as titles show it: a hub name as it is, of a path its last part."""
    text = model if isinstance(model, str) else called(model)
    return text if _ON_THE_HUB.fullmatch(text) else Path(text).name or text


@checked(wraps=ModelError)
def load_model(
    model: ModelLike,
    *,
    tokenizer: Any = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    example: Any = None,
    channels: Channels | None = None,
    remote: bool | str = False,
    **options: Any,
) -> _Model:
    """Loads a model by name, or wraps one that is loaded already.

    Args:
        model: a name on the Hugging Face hub, a local folder, a GGUF file, nnsight's
            `LanguageModel`, `TransformersModel` or `NNsight`, a Hugging Face model, any
            `torch.nn.Module`, or a `TracedModel` or `ModelSet`, which is returned as it is.
        tokenizer: the tokenizer, a processor that holds one, or its name; required for text with a
            model object that has none.
        device: of a model loaded by name; by default the accelerator if there is one. Objects stay
            where they are, and an argument that says otherwise raises.
        dtype: of a model loaded by name; by default bfloat16 where the device is fast at it, else
            float32.
        revision: branch, tag or commit on the hub.
        example: inputs of a model that takes no token ids (see `TracedModel`).
        channels: where the model's maps have their channels (see `TracedModel`).
        remote: runs a model on NDIF's servers (True) or another (its URL), without its weights
            here; "local" does everything that a remote run does, in this process.
        options: passed on to `from_pretrained`, as `device_map` or `quantization_config`. Code that
            comes with a model runs with `trust_remote_code=True` only.

    Raises:
        ModelError: the model or tokenizer does not exist, or cannot be used.
        ConfigError: there is no such device, or a model that is loaded already has other settings.
    """
    if isinstance(model, TracedModel) or hasattr(model, "capture"):  # a `ModelSet`
        _check_own(
            model, tokenizer=tokenizer, device=device, dtype=dtype, revision=revision, channels=channels,
            example=example, remote=remote or None, **options,
        )  # fmt: skip
        return model  # pyright: ignore[reportReturnType]
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = load_tokenizer(str(tokenizer))
    if isinstance(remote, str) and remote != "local" and "://" not in remote:
        raise ConfigError(f"Got remote={remote!r}; give True for NDIF, the URL of a server, or 'local'.")
    if not isinstance(model, (str, os.PathLike)):
        if remote:
            got = f"Got a {type(model).__name__} with remote={remote!r}"
            raise ModelError(f"{got}; a server knows models by name. Give the name on the hub.")
        wrapped = _wrap(model, tokenizer, example, channels)
        _check_own(wrapped, device=device, dtype=dtype, revision=revision, **options)
        return wrapped
    name = str(model)
    known = Path(name).stem if name.endswith(".gguf") else name  # a GGUF file has the same name in every folder
    if remote:
        tokenizer = tokenizer or load_tokenizer(name, revision)
        tracer = RemoteTracer(name, tokenizer, revision=revision, remote=remote, options=options)
        return TracedModel(tracer.module, tokenizer, name=known, revision=revision, tracer=tracer)
    module = load_pretrained(name, as_device(device), dtype, revision, options)
    if tokenizer is None and takes_text(module):
        tokenizer = load_tokenizer(name, revision, options.get("trust_remote_code", False))
    return TracedModel(module, tokenizer, name=known, revision=revision, example=example, channels=channels)


def _check_own(model: Any, **given: Any) -> None:
    """Checks that a model that is loaded already is not asked to be another.

    Raises:
        ConfigError: an argument differs from what the model has.
    """
    own: dict[str, Any] = {name: getattr(model, name, None) for name in given}
    if given.get("dtype") is not None:
        own["dtype"] = str(own["dtype"]).removeprefix("torch.")
        given["dtype"] = str(given["dtype"]).removeprefix("torch.")
    if given.get("device") is not None:
        wanted = as_device(given["device"])
        given["device"] = own["device"] if wanted.index is None and wanted.type == own["device"].type else wanted
    if given.get("tokenizer") is not None:
        tokenizer = getattr(given["tokenizer"], "tokenizer", given["tokenizer"])  # a processor holds one
        is_own = tokenizer is own["tokenizer"] or tokenizer == getattr(own["tokenizer"], "name_or_path", None)
        given["tokenizer"] = own["tokenizer"] if is_own else tokenizer
    if given.get("example") is not None:
        own["example"] = given["example"] if given["example"] is model._builder.example else "another one"
    for name, value in given.items():
        if value is not None and value is not own[name] and value != own[name]:
            # a tokenizer's repr fills a page
            got, has = (repr(v) if isinstance(v, (str, int)) else type(v).__name__ for v in (value, own[name]))
            raise ConfigError(
                f"Got {name}={got} with {getattr(model, 'name', 'a model')}, which is loaded already and has "
                f"{name}={has}. Leave {name} out, or load the model itself with it."
            )


def _wrap(model: Any, tokenizer: Any, example: Any, channels: Channels | None) -> TracedModel:
    module = model if isinstance(model, nn.Module) else getattr(model, "_module", None)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"Got a {type(model).__name__} as the model; give a name, a folder, a GGUF file, a Hugging Face model, "
            "another torch.nn.Module, or an nnsight LanguageModel, TransformersModel or NNsight."
        )
    if not isinstance(model, nn.Module):
        if getattr(model, "dispatched", True) is False:
            model.dispatch()  # nnsight leaves parameters on `meta` until they are needed
            module = model._module
        tokenizer = model.__dict__.get("tokenizer") if tokenizer is None else tokenizer
    return TracedModel(module, tokenizer, example=example, channels=channels)


def load_pretrained(
    name: str,
    device: torch.device,
    dtype: torch.dtype | str | None,
    revision: str | None,
    options: dict[str, Any],
) -> nn.Module:
    """Returns the model of that name; the arguments are those of `load_model`.

    Raises:
        ModelError: there is no such model, it cannot be reached, or its files lack weights.
        MissingDependencyError: a GGUF file needs a package that is not installed.
    """
    if isinstance(dtype, str) and dtype not in _DTYPES:
        raise ModelError(f"Unknown dtype '{dtype}'.{did_you_mean(dtype, _DTYPES)} Known: {', '.join(_DTYPES)}.")
    wanted: torch.dtype = _DTYPES[dtype] if isinstance(dtype, str) else dtype or fast_dtype(device)
    source, extra = _source(name)
    # left out, transformers would ask standard input
    options = {
        "trust_remote_code": False,
        **_quantization(extra),
        **extra,
        **options,
        "revision": revision or "main",
        "output_loading_info": True,
    }
    try:
        kind = _model_class(source, extra, options)
        with other_bars(f"Loading {name}"):
            module, info = kind.from_pretrained(source, dtype=wanted, **options)
        module = module if "device_map" in options else module.to(device)
    except DictionaryLearningError:
        raise
    except Exception as error:
        if is_of_memory(error):
            raise ModelError(_too_large(name, source, device, wanted, options)) from error
        raise ModelError(_not_loaded(name, error, options)) from error
    lacking = sorted(set(info["missing_keys"]) & {key for key, _ in module.named_parameters()})
    if lacking:
        raise ModelError(
            f"The files of '{name}' lack {len(lacking)} of the weights of {type(module).__name__}, such as "
            f"'{lacking[0]}', which would be random. Check the files and config.json. To use it nevertheless, load it "
            "with transformers and give the model object."
        )
    return module


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Returns the tokenizer of that name, or of the model of that name, or raises ModelError."""
    transformers: Any = importlib.import_module("transformers")
    source, extra = _source(name, (*_SAVED, *_SAVED_TOKENIZERS))
    try:
        extra |= {"revision": revision or "main", "trust_remote_code": trust_remote_code}
        return transformers.AutoTokenizer.from_pretrained(source, **extra)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"No tokenizer could be loaded from '{name}': {_first_line(error)} Set tokenizer= to a name or an object."
        ) from error


def takes_text(module: nn.Module) -> bool:
    """Returns whether a model takes token ids."""
    return "input_ids" in inspect.signature(type(module).forward).parameters


def _model_class(source: str, extra: dict[str, str], options: dict[str, Any]) -> Any:
    """Returns the class that a config names, or transformers' first automatic one that knows it."""
    transformers: Any = importlib.import_module("transformers")
    if extra or Path(source, "adapter_config.json").is_file():
        return transformers.AutoModelForCausalLM  # a GGUF file, or an adapter, which names its model
    known = {key: options[key] for key in ("revision", "trust_remote_code", "token", "cache_dir") if key in options}
    config = options.get("config") or transformers.AutoConfig.from_pretrained(source, **known)
    named = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
    if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
        return named
    own: dict[str, str] = getattr(config, "auto_map", None) or {}  # code that comes with the model
    for kind in ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM", "AutoModel"):
        if kind in own or type(config) in getattr(transformers, kind)._model_mapping:
            return getattr(transformers, kind)
    return transformers.AutoModelForCausalLM


def _source(name: str, marks: Sequence[str] = _SAVED) -> tuple[str, dict[str, Any]]:
    """Returns the arguments of `from_pretrained` for a hub name, a folder, or a GGUF file."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not any((path / file).is_file() for file in marks):
            gguf = sorted(p.name for p in path.glob("*.gguf"))
            saved = "Name the folder that save_pretrained wrote."
            hint = f"It holds {', '.join(gguf)}: name that file." if gguf else saved
            lacks = "config.json, and is no saved model" if marks == _SAVED else "file of a tokenizer that was saved"
            raise ModelError(f"The folder '{name}' has no {lacks}. {hint}")
        return str(path), {}
    if path.suffix == ".gguf" or path.is_absolute() or name.startswith(("./", "../", "~")):
        raise ModelError(_missing_path(path))
    return name, {}


def _quantization(extra: dict[str, str]) -> dict[str, Any]:
    """Returns the option that unpacks a GGUF file's weights, if transformers leaves them packed."""
    if not extra:
        return {}
    for package in ("accelerate", "gguf"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "Reading a GGUF file")
    config = getattr(importlib.import_module("transformers"), "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _missing_path(path: Path) -> str:
    message, advice = f"There is no model at '{path}'.", "Give a folder, a .gguf file or a hub name."
    if not path.parent.is_dir():
        return f"{message} {advice}"
    there = sorted(p.name for p in path.parent.iterdir())
    near, holds = did_you_mean(path.name, there), ", ".join(there[:8]) or "nothing"
    return f"{message}{near} '{path.parent}' holds: {holds}. {advice}"


def _not_loaded(name: str, error: Exception, options: Mapping[str, Any]) -> str:
    if Path(name).expanduser().exists():
        where = "its files cannot be used"
    elif os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes"):
        where = "the hub is switched off by HF_HUB_OFFLINE"
    else:
        where = "it is no local folder, and the hub did not serve it"
    refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if refused and refused[1] in options:
        return (
            f"Got {refused[1]}={options[refused[1]]!r} for '{name}', and its model takes no such argument of "
            "from_pretrained. Check its name, or leave it out."
        )
    return (
        f"The model '{name}' could not be loaded ({where}): {type(error).__name__}: {_first_line(error)} "
        "Check the name and the options, or give a local folder or a .gguf file."
    )


def _too_large(name: str, source: str, device: torch.device, dtype: torch.dtype, options: Mapping[str, Any]) -> str:
    """Returns what a model needs, as far as its config tells, what there is, and what to do."""
    needs = "needs more memory than there is"
    with contextlib.suppress(Exception):  # of a package that was out of memory
        kind = _model_class(source, {}, dict(options))
        known = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
        with torch.device("meta"):
            module = kind._from_config(options.get("config") or kind.config_class.from_pretrained(source, **known))
        needs = f"has weights of {as_bytes(sum(p.numel() for p in module.parameters()) * dtype.itemsize)}"
    free = free_memory(device)
    left = "" if free is None else f", and {device} has {as_bytes(free)} left"
    smaller = "Give dtype='bfloat16', " if dtype.itemsize > torch.bfloat16.itemsize else "Give "
    return (
        f"The model '{name}' does not fit: in {str(dtype).removeprefix('torch.')} it {needs}{left}. {smaller}"
        "device_map='auto' to spread it over devices, or a smaller model."
    )


def _first_line(error: BaseException) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    line = line if line.endswith((".", "!", "?")) else line + "."
    return f"{line} It runs with load_model(..., trust_remote_code=True) only." if "custom code" in line else line
