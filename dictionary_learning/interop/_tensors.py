"""The tensors of a checkpoint, taken out by name, and dictionaries built from them.

None is left over, no random weights are drawn, and no memory is unused. All functions raise a
CheckpointError where a tensor is missing, unknown or misshapen.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dictionary_learning._hardware import in_large_pages
from dictionary_learning.dictionaries import Coder, Dictionary, SkipAutoencoder, SparseAutoencoder, Transcoder
from dictionary_learning.dictionaries._named import autoencoder_class
from dictionary_learning.dictionaries._serialization import is_finite
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES
from dictionary_learning.errors import CheckpointError, DictionaryLearningError, did_you_mean
from dictionary_learning.interop._archives import read_pt
from dictionary_learning.interop._safe import plain_name, read_npz, read_safetensors

_ALIGNMENT = 64
"""Bytes."""
_MOST_INTEGERS = 4096
_LARGE = 1 << 20
_ROWS = 256
"""Elements of a matrix, from which on it is copied in threads, and rows at a time."""


class Tensors:
    """Tensors by name, each checked to have the shape that is needed.

    A shape is words, such as "dict_size dim". A word has one size wherever it stands: that of the
    first tensor with it.
    """

    def __init__(self, tensors: Any, where: object):
        self.where = where
        self.sizes: dict[str, int] = {}
        self._left: dict[str, Tensor] = {}  # those not taken yet
        if not isinstance(tensors, Mapping):
            raise CheckpointError(f"'{where}' holds a {type(tensors).__name__}; tensors by name are needed.")
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise CheckpointError(f"'{where}' holds {name!r}, which is no tensor by name. Give a file of weights.")
            if plain_name(name) in self._left:
                raise CheckpointError(f"'{where}' holds {plain_name(name)!r} twice. Save the dictionary again.")
            self._left[plain_name(name)] = tensor

    def __contains__(self, name: object) -> bool:
        return name in self._left

    def __getitem__(self, word: str) -> int:
        return self.sizes[word]

    def take(self, name: str, shape: str) -> Tensor:
        """Returns a tensor of floating-point numbers, all finite."""
        if name not in self._left:
            raise CheckpointError(
                f"'{self.where}' has no tensor '{name}'.{did_you_mean(name, self._left)} It holds: "
                f"{', '.join(sorted(self._left)) or 'nothing more'}. Get the whole file, or give its format."
            )
        tensor, words = self._left.pop(name), shape.split()
        wrong = tensor.ndim != len(words) or 0 in tensor.shape
        for word, size in zip(words, tensor.shape, strict=False):
            wrong = wrong or self.sizes.setdefault(word, size) != size  # the first tensor decides
        if wrong:
            needed = ", ".join(f"{word}={self.sizes[word]}" if word in self.sizes else word for word in words)
            raise CheckpointError(
                f"'{name}' in '{self.where}' has shape {tuple(tensor.shape)}; ({needed}) is needed. The file is of "
                "another format, or its parts are of different dictionaries."
            )
        if not tensor.is_floating_point():
            raise CheckpointError(f"'{name}' in '{self.where}' has dtype {tensor.dtype}; weights are floating-point.")
        if not is_finite(tensor):
            raise CheckpointError(
                f"'{self.where}' holds values that are not finite in {name}; the run that wrote it had diverged, or "
                "it is damaged."
            )
        return tensor

    def parts(self, names: Mapping[str, str], wide: str = "dim") -> dict[str, Tensor]:
        """Returns an encoder and a decoder by our names, with dim 0 the latent axis.

        Args:
            names: the name in the file of each part: W_enc, b_enc, W_dec, b_dec, W_skip; "<name>.T"
                where a matrix is stored the other way round.
            wide: the word for the width of the output.
        """
        shapes = {"W_enc": "dict_size dim", "b_enc": "dict_size", "W_dec": f"dict_size {wide}", "b_dec": wide}
        shapes["W_skip"] = f"{wide} dim"
        found: dict[str, Tensor] = {}
        for part, name in names.items():
            if name.endswith(".T"):
                turned = " ".join(reversed(shapes[part].split()))
                found[part] = self.take(name.removesuffix(".T"), turned).T
            else:
                found[part] = self.take(name, shapes[part])
        return found

    def integers(self, name: str) -> list[int] | None:
        """Returns a tensor of integers as a list; None if it is missing."""
        tensor = self._left.pop(name, None)
        if tensor is None:
            return None
        if tensor.is_floating_point() or tensor.ndim > 1 or tensor.numel() > _MOST_INTEGERS:
            raise CheckpointError(f"'{name}' in '{self.where}' holds no short list of integers.")
        return [int(n) for n in tensor.flatten()]

    def drop(self, *names: str) -> None:
        """Removes tensors that have no effect on the latents."""
        for name in names:
            self._left.pop(name, None)

    def finish(self, config: Mapping[str, Any] | None = None, **keys: str) -> None:
        """Checks that all tensors were taken, and that a config says their sizes.

        Args:
            config: the config; None or 0 in it means that the size is not said.
            keys: the config's key of each size, by its word here.
        """
        if self._left:
            raise CheckpointError(
                f"'{self.where}' holds tensors that its format does not have: {', '.join(sorted(self._left))}. They "
                "may change what the dictionary computes; give the format that the file is of."
            )
        for word, key in keys.items():
            said = (config or {}).get(key)
            if said and word in self.sizes and said != self.sizes[word]:
                raise CheckpointError(
                    f"The config of '{self.where}' says {key}={said!r}, and its tensors have {self.sizes[word]}: they "
                    "do not belong together."
                )

    def check_expansion(self, config: Mapping[str, Any], key: str) -> None:
        """Checks how many times as many latents there are as dimensions, if a config says it."""
        said, dim, size = config.get(key), self.sizes["dim"], self.sizes["dict_size"]
        if isinstance(said, (int, float)) and said and round(said * dim) != size:
            raise CheckpointError(
                f"The config of '{self.where}' says {key}={said!r}, and its tensors have {size} latents for {dim} "
                "dimensions: they do not belong together."
            )


def read_tensors(path: Path) -> Tensors:
    """Returns the tensors of a file."""
    readers = {".safetensors": read_safetensors, ".npz": read_npz}
    return Tensors(readers.get(path.suffix, read_pt)(path), path)


def stored_parts(dictionary: Coder, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns the parts of a dictionary by the names of a file: the inverse of `Tensors.parts`."""
    parts = {name: getattr(dictionary, part) for part, name in names.items()}
    return {
        name.removesuffix(".T"): tensor.T if name.endswith(".T") else tensor
        for name, tensor in parts.items()
        if tensor is not None
    }


def coder(
    parts: Mapping[str, Tensor],
    nonlinearity: str = "relu",
    state: Mapping[str, Tensor] | None = None,
    *,
    centered: bool = True,
    predicts: bool = False,
    named: Callable[..., Dictionary] | None = None,
    **options: Any,
) -> Coder:
    """Returns a dictionary of one encoder and one decoder, as the class that people know it by.

    Args:
        parts: W_enc (dict_size, activation_dim), W_dec (dict_size, output_dim), b_enc, b_dec and
            W_skip (output_dim, activation_dim). Without W_enc the decoder is the encoder, without
            b_enc the nonlinearity has the biases, and b_dec is zeros by default.
        nonlinearity: a name of `NONLINEARITIES`.
        state: its tensors.
        centered: whether b_dec is subtracted before encoding.
        predicts: whether other activations are reconstructed than are read.
        named: the class, where the nonlinearity does not decide it.
        options: the nonlinearity's arguments.
    """
    dict_size, output_dim = parts["W_dec"].shape
    dim = parts["W_enc"].shape[1] if "W_enc" in parts else output_dim
    tensors = {"b_dec": parts["W_dec"].new_zeros(output_dim), **parts}
    tensors |= {f"nonlinearity.{name}": tensor for name, tensor in (state or {}).items()}
    has_skip = "W_skip" in parts
    arguments: dict[str, Any] = {"nonlinearity": {"name": nonlinearity, **options}}
    if not centered and (predicts or has_skip):
        made = built(Transcoder, tensors, dim, dict_size, **arguments, output_dim=output_dim, skip=has_skip)
    elif has_skip:
        made = built(SkipAutoencoder, tensors, dim, dict_size, **arguments)
    else:
        cls = named or autoencoder_class(NONLINEARITIES[nonlinearity])
        arguments = arguments if cls is SparseAutoencoder else options
        made = built(cls, tensors, dim, dict_size, **arguments, apply_b_dec_to_input=centered)
    assert isinstance(made, Coder)
    return made


def built(make: Callable[..., Dictionary], tensors: Mapping[str, Tensor], *sizes: Any, **options: Any) -> Dictionary:
    """Returns a dictionary with these tensors."""
    try:
        with torch.device("meta"):  # sizes of a config take no memory
            dictionary = make(*sizes, **options)
    except (DictionaryLearningError, TypeError, ValueError, ArithmeticError, AttributeError, KeyError) as error:
        raise CheckpointError(f"The checkpoint describes no dictionary that can be built: {error}") from error
    tensors = _of_one_dtype(tensors, dictionary)
    needed = {name: tuple(tensor.shape) for name, tensor in dictionary.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in needed.keys() | got.keys() if needed.get(name) != got.get(name))
    if wrong:
        detail = "; ".join(
            f"{name}: needed {needed.get(name, 'nothing')}, got {got.get(name, 'nothing')}" for name in wrong
        )
        raise CheckpointError(
            f"The tensors do not fit the {type(dictionary).__name__} of the config. {detail}. Save the dictionary "
            "again."
        )
    dictionary.load_state_dict(_separate(tensors), assign=True)  # the tensors themselves, no copy
    return dictionary


def _of_one_dtype(tensors: Mapping[str, Tensor], dictionary: Dictionary) -> Mapping[str, Tensor]:
    """Returns tensors of which the parameters have one dtype: float32 where a file has several."""
    # thresholds are float32 beside weights of any dtype
    parameters = {name for name, _ in dictionary.named_parameters() if not name.endswith("threshold")}
    dtypes = {tensor.dtype for name, tensor in tensors.items() if name in parameters and tensor.is_floating_point()}
    if len(dtypes) < 2:
        return tensors
    return {name: tensor.float() if name in parameters else tensor for name, tensor in tensors.items()}


def without_threshold() -> dict[str, Tensor]:
    """Returns the state of TopK of packages that learn no threshold."""
    return {"threshold": torch.tensor(-1.0)}


def jump_thresholds(thresholds: Tensor) -> dict[str, Tensor]:
    """Returns the state of JumpReLU."""
    # other packages rectify what exceeds the threshold, so that a negative one acts as zero
    return {"threshold": thresholds.float().clamp_min(0)}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns contiguous tensors that share no memory; those that are so already are not copied."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        is_whole = tensor.is_contiguous() and storage.nbytes() == tensor.numel() * tensor.element_size()
        # matrix products round otherwise, in the last bit, where vectors are not aligned
        fits = is_whole and storage.data_ptr() not in taken and tensor.data_ptr() % _ALIGNMENT == 0
        keep = fits and not tensor.requires_grad
        found[name] = tensor if keep else _copied(tensor.detach())
        taken.add(storage.data_ptr())
    return found


def _copied(tensor: Tensor) -> Tensor:
    """Returns a contiguous copy. A large matrix that lies by columns is copied in threads."""
    out = in_large_pages(torch.empty_like(tensor, memory_format=torch.contiguous_format))
    n_threads = torch.get_num_threads()
    if tensor.dim() != 2 or not tensor.T.is_contiguous() or tensor.numel() < _LARGE or n_threads < 2:
        return out.copy_(tensor)

    def copy(rows: slice) -> None:
        # PyTorch is fast at whole matrices, and on one thread only
        out[rows].copy_(tensor.T[:, rows].contiguous().T)

    with ThreadPoolExecutor(n_threads) as threads:
        parts = [slice(start, start + _ROWS) for start in range(0, len(tensor), _ROWS)]
        list(threads.map(copy, parts))
    return out
