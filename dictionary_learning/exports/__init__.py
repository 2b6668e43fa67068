"""Dictionaries and what is known of their latents, in the files of other tools."""

from dictionary_learning.exports._attribution_graph import write_attribution_graph
from dictionary_learning.exports._circuit_tracer import write_circuit_tracer
from dictionary_learning.exports._control_vectors import ControlDirection, control_direction, write_control_vector
from dictionary_learning.exports._facts import LatentFacts
from dictionary_learning.exports._neuronpedia import write_neuronpedia
from dictionary_learning.exports._neuronpedia_upload import upload_batches, upload_to_neuronpedia
from dictionary_learning.exports._picture import write_latent_picture
from dictionary_learning.exports._sae_dashboard import write_sae_dashboard

__all__ = [
    "ControlDirection",
    "LatentFacts",
    "control_direction",
    "upload_batches",
    "upload_to_neuronpedia",
    "write_attribution_graph",
    "write_circuit_tracer",
    "write_control_vector",
    "write_latent_picture",
    "write_neuronpedia",
    "write_sae_dashboard",
]
