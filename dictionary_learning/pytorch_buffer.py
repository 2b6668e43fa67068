"""An old address: one `ActivationBuffer` takes plain PyTorch models too."""

from dictionary_learning.buffer import ActivationBuffer as ActivationBuffer
