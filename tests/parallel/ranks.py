"""Runs a function in several processes that are connected as by torchrun."""

import faulthandler
import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.processes import TIMEOUT, process_of


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def as_rank(rank: int, n: int, port: int) -> None:
    """Sets what torchrun sets."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ.setdefault("DICTIONARY_LEARNING_RANK_TIMEOUT", "60")
    torch.set_num_threads(1)


def _work(rank: int, n: int, port: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    as_rank(rank, n, port)
    faulthandler.dump_traceback_later(TIMEOUT - 5)  # where a rank hangs
    try:
        found = ("result", function(*arguments))
    except BaseException as error:  # noqa: BLE001  (the parent looks at it)
        found = ("error", f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    torch.save(found, Path(folder) / f"{rank}.pt")


def run_ranks(n: int, function: Callable[..., Any], *arguments: Any) -> list[tuple[str, Any]]:
    """Returns for each rank "result" and what the function returned, or "error" and what it raised."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        processes = [process_of(_work, rank, n, port, folder, function, arguments) for rank in range(n)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(TIMEOUT)
            assert process.exitcode is not None, "a rank hangs"
        found = []
        for rank, process in enumerate(processes):
            path = Path(folder) / f"{rank}.pt"
            killed = ("killed", process.exitcode)
            found.append(torch.load(path, weights_only=False) if path.exists() else killed)
        return found


def results(n: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Returns what the function returned on each rank."""
    found = run_ranks(n, function, *arguments)
    for kind, value in found:
        assert kind == "result", value
    return [value for _, value in found]
