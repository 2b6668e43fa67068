"""Changes to a model's activations and to latents, in a forward pass and during generation.

Functions that change activations return an `Edit`, a plain function from a site's activations to
new ones: for `TracedModel.run`, for the body of any nnsight trace, and for `attached`, which edits
a model while it is used in any way. Edits are named functions, not lambdas, which nnsight could not
send to a server.
"""

from dictionary_learning.interventions._activations import TokenMask, ablate, graft, graft_across, put, steer
from dictionary_learning.interventions._attached import attached
from dictionary_learning.interventions._latents import edit_latents, edit_latents_across
from dictionary_learning.interventions._reading import LatentReading, read_latents

__all__ = [
    "LatentReading",
    "TokenMask",
    "ablate",
    "attached",
    "edit_latents",
    "edit_latents_across",
    "graft",
    "graft_across",
    "put",
    "read_latents",
    "steer",
]
