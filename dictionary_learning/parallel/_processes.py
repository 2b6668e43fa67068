"""Ranks that are processes of `torch.distributed`.

Tensors on a CPU go through gloo, those on CUDA through NCCL. Numbers and objects always are on the
CPU, so that the host does not wait for an accelerator.
"""

import contextlib
import datetime
import time
from collections.abc import Generator, Iterable, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from dictionary_learning.errors import RankError
from dictionary_learning.parallel._launch import timeout
from dictionary_learning.parallel._ranks import ALONE, Ranks

_LONG = datetime.timedelta(days=7)
"""How long ranks wait for what one of them does alone."""


class Processes(Ranks):
    """The processes of a group; by default of the whole job.

    Raises:
        RankError: Another rank has ended, or has not answered within the group's timeout.
    """

    _waited: ClassVar[float] = 0.0  # of the process, in all of its groups

    def __init__(self, group: Any = None, is_patient: bool = False):
        self._group: Any = dist.group.WORLD if group is None else group
        self._is_patient = is_patient
        self._patient: Processes | None = None
        self.rank, self.size = dist.get_rank(self._group), dist.get_world_size(self._group)

    def sum(self, x: Tensor) -> Tensor:
        x = x.detach().clone()
        with self._others():
            dist.all_reduce(x, group=self._group)
        return x

    def mean(self, x: Tensor, n: int) -> Tensor:
        weighted = torch.cat([x.detach().flatten() * n, x.new_full((1,), float(n))])
        *_, total = summed = self.sum(weighted)
        whole = (summed[:-1] / total).view_as(x)
        return x + (whole - x.detach()) if x.requires_grad else whole

    def minimum(self, x: Tensor) -> Tensor:
        x = x.detach().clone()
        with self._others():
            dist.all_reduce(x, dist.ReduceOp.MIN, group=self._group)
        return x

    def gather(self, rows: Tensor) -> Tensor:
        counts = [n for (n,) in self.tell([len(rows)])]
        most = max(counts)
        # as bytes: gloo does not know all types
        flat = rows.detach().unsqueeze(-1) if rows.ndim == 1 else rows.detach().flatten(1)
        own = flat.contiguous().view(torch.uint8)
        padded = own.new_zeros(most, *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in counts]
        with self._others():
            dist.all_gather(parts, padded, group=self._group)
        whole = torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]).view(rows.dtype)
        return whole.reshape(-1, *rows.shape[1:])

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        with self._others():
            for work in [dist.all_reduce(x, group=self._group, async_op=True) for x in tensors]:
                assert work is not None
                work.wait()

    def take_first_(self, tensors: Iterable[Tensor]) -> None:
        source = dist.get_global_rank(self._group, 0)
        with self._others():
            for x in tensors:
                dist.broadcast(x, source, group=self._group)

    def add(self, x: Tensor) -> Tensor:
        return cast(Tensor, _Add.apply(x, self))

    def lend(self, x: Tensor) -> Tensor:
        return cast(Tensor, _Lend.apply(x, self))

    def stack(self, x: Tensor) -> Tensor:
        own = x.detach().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with self._others():
            dist.all_gather(parts, own, group=self._group)
        return torch.stack(parts)

    def grid(self, columns: int) -> tuple[Ranks, Ranks]:
        members = dist.get_process_group_ranks(self._group)
        rows = [members[start : start + columns] for start in range(0, len(members), columns)]
        column, row = self._member_of([list(one) for one in zip(*rows, strict=True)]), self._member_of(rows)
        return column, row

    def _member_of(self, groups: Sequence[list[int]]) -> Ranks:
        """Returns this rank's group; all ranks make all of them, in one order."""
        local = self._is_part()
        made = [
            dist.new_group(members, timeout=timeout(), use_local_synchronization=local) if len(members) > 1 else None
            for members in groups
        ]
        own = next(group for group, members in zip(made, groups, strict=True) if dist.get_rank() in members)
        return ALONE if own is None else Processes(own)

    def tell(self, numbers: Sequence[int]) -> list[list[int]]:
        own = torch.tensor(numbers, dtype=torch.long)
        told = [torch.empty_like(own) for _ in range(self.size)]
        with self._others():
            dist.all_gather(told, own, group=self._group)
        return [part.tolist() for part in told]

    def share(self, value: Any, source: int = 0) -> Any:
        box = [value]
        with self._others():
            dist.broadcast_object_list(
                box, dist.get_global_rank(self._group, source), group=self._group, device=torch.device("cpu")
            )
        return box[0]

    def collect(self, value: Any) -> list[Any]:
        return [self.share(value, source) for source in range(self.size)]

    def patient(self) -> Ranks:
        if self._patient is None:
            members = dist.get_process_group_ranks(self._group)
            # a rank that ends still breaks its connection, which all notice at once
            group = dist.new_group(members, timeout=_LONG, backend="gloo", use_local_synchronization=self._is_part())
            self._patient = Processes(group, is_patient=True)
        return self._patient

    def _is_part(self) -> bool:
        """Returns whether the job has others, as those that trace, which make no groups too."""
        return self.size < dist.get_world_size()

    def waited(self) -> float:
        return Processes._waited

    @contextlib.contextmanager
    def _others(self) -> Generator[None]:
        """Turns what a lost rank causes here into an error that says so."""
        start = time.monotonic()
        try:
            yield
            if not self._is_patient:
                Processes._waited += time.monotonic() - start
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise RankError(
                f"Rank {dist.get_rank()} of {dist.get_world_size()} has lost another one, which has ended or not "
                f"answered in time ({reason}). Look for its error above; a run with checkpoints goes on with resume."
            ) from error


class _Add(torch.autograd.Function):
    """The sum over ranks, of which each is a term."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        return ranks.sum(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, None


class _Lend(torch.autograd.Function):
    """The same tensor, which each rank uses for a part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.ranks.sum(grad.contiguous()), None
