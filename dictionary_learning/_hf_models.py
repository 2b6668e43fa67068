"""Pretrained models and tokenizers by name: from the hub, a folder or a GGUF file.

A model is loaded as the class that its config names: a causal language model, an encoder with or
without the head for masked tokens, an encoder and decoder, an image model. Another class would fill
in random weights for those that the file lacks.
"""

import inspect
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dictionary_learning._hardware import fast_dtype
from dictionary_learning.errors import DictionaryLearningError, MissingDependencyError, ModelError, did_you_mean


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
    if isinstance(dtype, str):
        dtype = dtype_from_name(dtype)
    source, extra = _source(name)
    options = {**_quantization(extra), **extra, **options, "revision": revision or "main", "output_loading_info": True}
    try:
        kind = _model_class(source, extra, options)
        module, info = kind.from_pretrained(source, dtype=dtype or fast_dtype(device), **options)
    except (DictionaryLearningError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(_not_loaded(name, error)) from error
    lacking = sorted(set(info["missing_keys"]) & {key for key, _ in module.named_parameters()})
    if lacking:
        raise ModelError(
            f"The files of '{name}' lack {len(lacking)} of the weights of {type(module).__name__}, such as '{lacking[0]}', "
            "which would be random. Check the files and config.json. To use it nevertheless, load it with transformers and "
            "give the model object."
        )
    return module if "device_map" in options else module.to(device)


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """Returns the tokenizer of that name, or the one that comes with the model of that name.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoTokenizer

    source, extra = _source(name)
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision or "main", **extra)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"No tokenizer could be loaded from '{name}': {_first_line(error)} Set tokenizer= to a name or an object."
        ) from error


def takes_text(module: nn.Module) -> bool:
    """Returns whether a model takes token ids."""
    return "input_ids" in inspect.signature(type(module).forward).parameters


def _model_class(source: str, extra: dict[str, str], options: dict[str, Any]) -> Any:
    """Returns the class that a config names, or the first of transformers' automatic ones that knows it."""
    import transformers

    if extra or Path(source, "adapter_config.json").is_file():
        return transformers.AutoModelForCausalLM  # a GGUF file, or an adapter, which names its model
    known = {key: options[key] for key in ("revision", "trust_remote_code", "token", "cache_dir") if key in options}
    config: Any = options.get("config") or transformers.AutoConfig.from_pretrained(source, **known)
    named = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
    if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
        return named
    automatic = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM", "AutoModel")
    own = getattr(config, "auto_map", None) or {}  # code that comes with the model
    for kind in automatic:
        if kind in own or type(config) in getattr(transformers, kind)._model_mapping:
            return getattr(transformers, kind)
    return transformers.AutoModelForCausalLM


def _source(name: str) -> tuple[str, dict[str, str]]:
    """Returns the arguments of `from_pretrained` for a hub name, a folder, or a GGUF file."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(_missing_path(path))
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            gguf = sorted(p.name for p in path.glob("*.gguf"))
            hint = (
                f"It holds {', '.join(gguf)}: name that file."
                if gguf
                else "Name the folder that save_pretrained wrote."
            )
            raise ModelError(f"The folder '{name}' has no config.json, and is no saved model. {hint}")
        return str(path), {}
    if path.is_absolute() or name.startswith(("./", "../", "~")):
        raise ModelError(_missing_path(path))
    return name, {}


def _quantization(extra: dict[str, str]) -> dict[str, Any]:
    """Returns the option that unpacks a GGUF file's weights, if this transformers leaves them packed."""
    if not extra:
        return {}
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(error.name or "gguf", "Reading a GGUF file", "gguf") from error
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def dtype_from_name(name: str) -> torch.dtype:
    """Returns torch's type by name: "bfloat16", "float16", "float32" or "float64"."""
    known = {n: getattr(torch, n) for n in ("bfloat16", "float16", "float32", "float64")}
    if name not in known:
        raise ModelError(f"Unknown dtype '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    return known[name]


def _missing_path(path: Path) -> str:
    there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    inside = f" '{path.parent}' holds: {', '.join(there[:8]) or 'nothing'}." if path.parent.is_dir() else ""
    return f"There is no model at '{path}'.{did_you_mean(path.name, there)}{inside} Give a folder, a .gguf file or a hub name."


def _not_loaded(name: str, error: Exception) -> str:
    if Path(name).expanduser().exists():
        where = "its files cannot be used"
    elif os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes"):
        where = "the hub is switched off by HF_HUB_OFFLINE"
    else:
        where = "it is no local folder, and the hub did not serve it"
    return (
        f"The model '{name}' could not be loaded ({where}): {type(error).__name__}: {_first_line(error)} "
        "Check the name and the options, or give a local folder or a .gguf file."
    )


def _first_line(error: BaseException) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return line if line.endswith((".", "!", "?")) else line + "."
