"""The tensors of a checkpoint, taken out by name: every one has its place, and none is left over."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.errors import CheckpointError, did_you_mean

_ALIGNMENT = 64
"""Bytes."""


class Tensors:
    """Tensors by name, each with the shape that is needed.

    A shape is words, as "dict_size dim": a word has one size wherever it stands, that of the first tensor with it.

    Args:
        tensors: what a file holds.
        where: the file, as errors call it.
        sizes: sizes that are known already.

    Raises:
        CheckpointError: something in the file is no tensor.
    """

    def __init__(self, tensors: Mapping[Any, Any], where: str, **sizes: int):
        self.where = where
        self.sizes = sizes
        self._left: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise CheckpointError(f"'{where}' holds {name!r}, which is no tensor by name. Give a file of weights.")
            self._left[name] = tensor

    def __contains__(self, name: object) -> bool:
        return name in self._left

    def __len__(self) -> int:
        return len(self._left)

    def __getitem__(self, word: str) -> int:
        return self.sizes[word]

    def take(self, name: str, shape: str) -> Tensor:
        """Returns a tensor of floating-point numbers, all finite.

        Raises:
            CheckpointError: it is missing, or is no such tensor.
        """
        if name not in self._left:
            raise CheckpointError(
                f"'{self.where}' has no tensor '{name}'.{did_you_mean(name, self._left)} It holds: "
                f"{', '.join(sorted(self._left)) or 'nothing more'}. Get the whole file, or give the format that it is of."
            )
        tensor = self._left.pop(name)
        self._check_shape(name, tensor, shape.split())
        if not tensor.is_floating_point():
            raise CheckpointError(f"'{name}' in '{self.where}' has dtype {tensor.dtype}; weights are floating-point.")
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"'{self.where}' holds values that are not finite in {name}; the run that wrote it had diverged, or it is damaged."
            )
        return tensor

    def whole(self, name: str) -> list[int] | None:
        """Returns a tensor of whole numbers as a list; None if it is missing.

        Raises:
            CheckpointError: it holds other numbers, or more than a few.
        """
        tensor = self._left.pop(name, None)
        if tensor is None:
            return None
        if tensor.is_floating_point() or tensor.ndim > 1 or tensor.numel() > 4096:
            raise CheckpointError(f"'{name}' in '{self.where}' holds no short list of whole numbers.")
        return [int(n) for n in tensor.flatten()]

    def maybe(self, name: str, shape: str) -> Tensor | None:
        """The same as `take`; None if the tensor is missing."""
        return self.take(name, shape) if name in self._left else None

    def first(self, names: tuple[str, ...], shape: str) -> Tensor:
        """Returns the first of several names that is there."""
        return self.take(next((name for name in names if name in self._left), names[0]), shape)

    def drop(self, *names: str) -> None:
        """Leaves tensors out that mean nothing for the latents."""
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        """Checks that nothing is left.

        Raises:
            CheckpointError: there are tensors that nothing is known of.
        """
        if self._left:
            raise CheckpointError(
                f"'{self.where}' holds tensors that its format does not have: {', '.join(sorted(self._left))}. Without knowing what "
                "they do, the dictionary may compute something else; give the format that it is of."
            )

    def check(self, said: Any, word: str, name: str) -> None:
        """Checks what a config says of a size.

        Raises:
            CheckpointError: the tensors have another.
        """
        if said is not None and said != self.sizes[word]:
            raise CheckpointError(
                f"The config of '{self.where}' says {name}={said!r}, and its tensors have {self.sizes[word]}: they do not belong together."
            )

    def _check_shape(self, name: str, tensor: Tensor, words: list[str]) -> None:
        wrong = tensor.ndim != len(words) or 0 in tensor.shape
        for word, size in zip(words, tensor.shape, strict=False):
            wrong = wrong or self.sizes.setdefault(word, size) != size
        if wrong:
            needed = ", ".join(f"{word}={self.sizes[word]}" if word in self.sizes else word for word in words)
            raise CheckpointError(
                f"'{name}' in '{self.where}' has shape {tuple(tensor.shape)}; ({needed}) is needed. The file is of another format, or "
                "its parts are of different dictionaries."
            )


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors that are contiguous and share no memory; those that are so already are not copied.

    All begin where PyTorch lets its own begin: products round otherwise, in the last bit, where vectors are not aligned.
    """
    found: dict[str, Tensor] = {}
    taken = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        fits = whole and place not in taken and not tensor.requires_grad and tensor.data_ptr() % _ALIGNMENT == 0
        found[name] = tensor if fits else tensor.detach().clone(memory_format=torch.contiguous_format)
        taken.add(place)
    return found
