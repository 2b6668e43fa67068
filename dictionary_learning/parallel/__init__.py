"""Training in several processes, on one or more devices each.

`torch.distributed` is imported here and nowhere else.
"""

import sys
from typing import Any

from dictionary_learning.parallel._costs import Cost, Sizes, costs
from dictionary_learning.parallel._division import check_division, n_shares
from dictionary_learning.parallel._elsewhere import TracedElsewhere
from dictionary_learning.parallel._launch import local_rank, refuse_several, world_size
from dictionary_learning.parallel._placement import SINGLE, Placement, PlacementName, place
from dictionary_learning.parallel._ranks import ALONE, Ranks
from dictionary_learning.parallel._selection import kept_of_all, kth_largest
from dictionary_learning.parallel._served import TracedHere
from dictionary_learning.parallel._together import on_each, on_first, only_first_talks
from dictionary_learning.parallel._waits import Waits

__all__ = [
    "ALONE",
    "SINGLE",
    "Cost",
    "Placement",
    "PlacementName",
    "Ranks",
    "Sizes",
    "TracedElsewhere",
    "TracedHere",
    "Waits",
    "check_division",
    "costs",
    "kept_of_all",
    "kth_largest",
    "local_rank",
    "n_shares",
    "on_each",
    "on_first",
    "only_first_talks",
    "place",
    "refuse_several",
    "start",
    "traced_apart",
    "world_size",
]


def start() -> Ranks:
    """Returns the processes of the job, and connects them where it has several.

    Scripts call it before they load a model onto the device of their process; `trainSAE` and the
    command do it themselves.

    Raises:
        ConfigError: The environment is incomplete, or the processes cannot reach each other.
    """
    known: Any = sys.modules.get("torch.distributed")
    is_connected = known is not None and known.is_available() and known.is_initialized()
    if world_size() == 1 and not is_connected:
        return ALONE
    from dictionary_learning.parallel import _start  # imports torch.distributed

    return _start.start()


def traced_apart(data: Any, tracing_ranks: int, world: Ranks) -> TracedHere | TracedElsewhere:
    """Returns data for the last ranks, which only trace them, or a view of them for the others.

    All ranks call it together, with a function that returns the data: ranks that train do not call
    it, so they load no language model. `trainSAE` does it, where it is given `tracing_ranks`.

    Args:
        data: The function, or the data.
        tracing_ranks: How many ranks trace.
        world: All ranks of the job.

    Raises:
        ConfigError: The ranks cannot be divided, or the data cannot be traced for other ranks.
    """
    check_division(world.size, tracing_ranks)
    from dictionary_learning.parallel import _tracing  # imports torch.distributed

    return _tracing.traced_apart(data, tracing_ranks, world)
