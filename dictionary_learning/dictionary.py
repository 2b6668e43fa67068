"""An old address: dictionaries are in `dictionary_learning.dictionaries`."""

from dictionary_learning.dictionaries import (
    AutoEncoder,
    AutoEncoderNew,
    Dictionary,
    GatedAutoEncoder,
    IdentityDict,
    JumpReluAutoEncoder,
)

__all__ = ["AutoEncoder", "AutoEncoderNew", "Dictionary", "GatedAutoEncoder", "IdentityDict", "JumpReluAutoEncoder"]
