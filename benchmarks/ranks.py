"""Bytes that ranks send in a step, measured and predicted, on 1, 2 and 4 processes with gloo.

    python benchmarks/ranks.py [--processes 1 2 4] [--dict-size 4096] [--tokens 2048]

Prints a table for docs/devices.md. Bytes are counted where tensors are given to torch.distributed;
a ring sends each byte of a sum twice, but for a rank's own part.
"""

import argparse
import functools
import os
import socket
import sys
from typing import Any

import torch
import torch.distributed as dist

from dictionary_learning import trainSAE
from dictionary_learning.parallel import Sizes, costs

DIM, K, STEPS, WARM = 128, 16, 4, 2
PLACEMENTS = ("data", "dictionary", "latent")


def batches(n: int, parts: int, steps: int) -> list[torch.Tensor]:
    """Returns random rows, of which each rank takes its part of every step."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n // parts, DIM, generator=generator) for _ in range(steps * parts)]


def counted(sent: list[int], n_ranks: int) -> None:
    """Makes torch.distributed count what this process sends."""
    reduce, gather = dist.all_reduce, dist.all_gather

    @functools.wraps(reduce)
    def all_reduce(x: torch.Tensor, *given: Any, **named: Any) -> Any:
        sent[0] += x.nbytes * 2 * (n_ranks - 1) // n_ranks
        return reduce(x, *given, **named)

    @functools.wraps(gather)
    def all_gather(parts: Any, x: torch.Tensor, *given: Any, **named: Any) -> Any:
        sent[0] += x.nbytes * (n_ranks - 1)
        return gather(parts, x, *given, **named)

    dist.all_reduce, dist.all_gather = all_reduce, all_gather


def measured(placement: Any, n_ranks: int, n_dictionaries: int, dict_size: int, n_tokens: int) -> float:
    """Returns bytes sent in a step: the difference between a longer and a shorter run."""
    sent: list[int] = [0]
    found: list[int] = []
    if n_ranks > 1:
        counted(sent, n_ranks)
    configs = [{"trainer": "top_k", "k": K, "dict_size": dict_size, "seed": seed} for seed in range(n_dictionaries)]
    for steps in (WARM, WARM + STEPS):
        data, sent[0] = batches(n_tokens, n_ranks, steps), 0
        trainSAE(
            data,
            configs,
            steps,
            progress=False,
            device="cpu",
            placement=placement,
            log_steps=1000,
        )
        found.append(sent[0])
    return (found[1] - found[0]) / STEPS


def work(rank: int, n_ranks: int, port: int, known: Any, queue: Any) -> None:
    """Measures every placement as one rank."""
    torch.set_num_threads(1)
    facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in facts.items()}
    for placement in PLACEMENTS[: 3 if n_ranks > 1 else 1]:
        for n_dictionaries in (1, 4):
            if placement == "dictionary" and n_dictionaries < n_ranks:
                continue
            sent = measured(placement, n_ranks, n_dictionaries, known.dict_size, known.tokens)
            if rank == 0:
                queue.put((placement, n_dictionaries, sent))
    if rank == 0:
        queue.put(None)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--dict-size", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a step, of all processes")
    known = parser.parse_args()
    write = sys.stdout.write
    write(f"{DIM} wide, {known.dict_size:,} latents, k {K}, {known.tokens:,} tokens in a step\n\n")
    write("| processes | placement | dictionaries | sent, measured | sent, predicted |\n|---|---|---|---|---|\n")
    context = torch.multiprocessing.get_context("spawn")
    for n in known.processes:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        queue = context.Queue()
        ranks = [context.Process(target=work, args=(rank, n, port, known, queue), daemon=True) for rank in range(n)]
        for rank in ranks:
            rank.start()
        while (one := queue.get()) is not None:
            placement, n_dictionaries, sent = one
            sizes = [Sizes(DIM, DIM, known.dict_size, K)] * n_dictionaries
            expected = {cost.placement: cost.sent for cost in costs(sizes, known.tokens, n, DIM * 4)}[placement]
            name = placement if n > 1 else "none"
            write(f"| {n} | {name} | {n_dictionaries} | {sent / 1e6:.2f} MB | {expected / 1e6:.2f} MB |\n")
            sys.stdout.flush()
        for rank in ranks:
            rank.join()


if __name__ == "__main__":
    main()
