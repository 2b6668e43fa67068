"""Changes to a model's activations and to latents, in a forward pass and during generation.

Functions that change activations return an `Edit`, a plain function from a site's activations to
new ones: for `TracedModel.run`, for the body of any nnsight trace, and for `attached`, which edits
a model while it is used in any way. These leave special tokens as they are, unless they are asked
not to; a plain function cannot know them. Edits are named functions, not lambdas, which nnsight
could not send to a server.
"""

from dictionary_learning.interventions._activations import TokenMask, ablate, graft, graft_across, put, steer
from dictionary_learning.interventions._attached import EditsLike, attached
from dictionary_learning.interventions._combine import combine
from dictionary_learning.interventions._door import EditedText, latent_edits, latent_edits_for
from dictionary_learning.interventions._generation import Generation, generate
from dictionary_learning.interventions._latents import edit_latents, edit_latents_across
from dictionary_learning.interventions._reading import LatentReading, read_latents
from dictionary_learning.interventions._tokens import When

__all__ = [
    "EditedText",
    "EditsLike",
    "Generation",
    "LatentReading",
    "TokenMask",
    "When",
    "ablate",
    "attached",
    "combine",
    "edit_latents",
    "edit_latents_across",
    "generate",
    "graft",
    "graft_across",
    "latent_edits",
    "latent_edits_for",
    "put",
    "read_latents",
    "steer",
]
