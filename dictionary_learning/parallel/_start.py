"""The start of a job of several processes, as `torchrun` starts them."""

import atexit
import datetime
import os
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from dictionary_learning.errors import ConfigError
from dictionary_learning.parallel._launch import local_rank, timeout, world_size
from dictionary_learning.parallel._processes import Processes
from dictionary_learning.parallel._ranks import ALONE, Ranks


def start() -> Ranks:
    """Returns the processes of the job, and connects them where it has several.

    Connected already, by a script or by an earlier call, they stay as they are. On CUDA, each takes
    the device of its number on the machine, which is then the default device.

    Raises:
        ConfigError: The environment is incomplete, the processes cannot reach each other, or a
            script has connected them for CUDA alone.
    """
    if not dist.is_initialized():
        _connect()
    # a script may have connected them: small numbers go through the CPU
    if "cpu" not in dist.get_backend_config():
        raise ConfigError(
            f"The processes are connected by {dist.get_backend_config()}, which has nothing for a CPU. Connect them "
            "by init_process_group('cpu:gloo,cuda:nccl'), or leave it to parallel.start()."
        )
    return Processes() if dist.get_world_size() > 1 else ALONE


def _connect() -> None:
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    longest = timeout()
    try:
        dist.init_process_group(backend, timeout=longest, **_meeting_place(longest))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"The {world_size()} processes of the job cannot be connected ({reason}). Start them by torchrun, which "
            "sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."
        ) from error
    atexit.register(_disconnect)


def _meeting_place(longest: datetime.timedelta) -> dict[str, Any]:
    """Returns where the processes of a job that torchrun has started again find each other.

    torchrun may keep the store of the first attempt, which names ports that are closed by now.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, world_size(), is_master=False, timeout=longest)
    place = PrefixStore(f"dictionary_learning/attempt_{attempt}", store)
    return {"store": place, "rank": int(os.environ["RANK"]), "world_size": world_size()}


def _disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
