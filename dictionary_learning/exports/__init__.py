"""Dictionaries and what is known of their latents, in the files of other tools."""

from dictionary_learning.exports._circuit_tracer import write_circuit_tracer

__all__ = ["write_circuit_tracer"]
