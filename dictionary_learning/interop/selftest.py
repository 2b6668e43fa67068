"""What is checked of every dictionary that was loaded, whoever wrote it."""

from dictionary_learning.dictionaries import Coder, Dictionary, Normalized
from dictionary_learning.dictionaries.nonlinearities import JumpReLU
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop.files import Files


def check_loaded(dictionary: Dictionary, files: Files) -> None:
    """Checks that all tensors are there and finite, with the shapes of the dictionary, and thresholds where they are needed.

    Raises:
        CheckpointError: one is not.
    """
    for name, tensor in dictionary.state_dict().items():
        if tensor.is_meta:
            raise CheckpointError(f"'{files}' gave no values for {name}, which the {type(dictionary).__name__} needs.")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"'{files}' gives values that are not finite in {name}; it is damaged, or the run that wrote it had diverged."
            )
    inner = dictionary.dictionary if isinstance(dictionary, Normalized) else dictionary
    if not isinstance(inner, Coder):
        return
    shapes = {
        "W_enc": (inner.dict_size, inner.activation_dim),
        "W_dec": (inner.dict_size, inner.output_dim),
        "b_enc": (inner.dict_size,),
        "b_dec": (inner.output_dim,),
    }
    for name, shape in shapes.items():
        tensor = getattr(inner, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise CheckpointError(f"'{files}' gives {name} the shape {tuple(tensor.shape)}; {shape} is needed.")
    if isinstance(inner.nonlinearity, JumpReLU) and tuple(inner.nonlinearity.threshold.shape) != (inner.dict_size,):
        raise CheckpointError(
            f"'{files}' gives no threshold for each of {inner.dict_size} latents, which JumpReLU needs."
        )
