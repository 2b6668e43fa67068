"""Training in several processes, on one or more devices each."""

from dictionary_learning.parallel._launch import local_rank, refuse_several, world_size

__all__ = ["local_rank", "refuse_several", "world_size"]
