"""What goes wrong in a run: seen without waiting for the device, told with its place, answered."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dictionary_learning._plain import counted
from dictionary_learning._run_setup import TrainingJob

Answer = Literal["skip", "stop", "rollback"]
ANSWERS = ("skip", "stop", "rollback")
_HOPELESS = 100
"""Steps in a row that were skipped, after which a dictionary is given up: its weights no longer
change, and only other data could help."""
_IMPROVEMENT = 0.99
"""Factor of the best FVU that counts as an improvement."""
_REMEDIES = (
    "tokens of its activations had a NaN or an infinity and gave way to others. Look at the site, or run the model "
    "in float32 or bfloat16 instead of float16.",
    "steps were skipped: a gradient was not finite, or the loss above max_loss_ratio. Lower the learning rate, or "
    "look for activations of enormous norm (max_activation_norm_multiple excludes them).",
)

logger = logging.getLogger(__name__)


class _Seen(NamedTuple):
    """Counts (dictionaries, 2) on their way to the host: tokens replaced, steps skipped."""

    step: int
    counts: Tensor
    has_arrived: Any
    """A CUDA event, or None on a CPU."""


class Watch:
    """Counts of every dictionary: tokens that are not finite, and skipped steps.

    A count is warned of when it was zero or has doubled. On CUDA it is read when it has arrived, a
    few steps later, so that the host never waits.
    """

    def __init__(self, jobs: Sequence[TrainingJob]):
        self._jobs = jobs
        self._pending: deque[_Seen] = deque()
        self.forget()

    def forget(self) -> None:
        """Starts from the trainers' present counts, as after they were resumed."""
        self._pending.clear()
        self._last = self._told = self._counts().tolist()
        self._idle_since: list[int | None] = [None] * len(self._jobs)

    def look(self, step: int, tokens: int) -> list[str]:
        """Returns what was wrong in steps up to this one and has not been returned before.

        Args:
            step: The step that was made.
            tokens: Tokens of the run so far, which tell where in the data that was.
        """
        counts = self._counts()
        on_host, event = counts.to("cpu", non_blocking=True), None
        if counts.is_cuda:
            event = torch.cuda.Event()
            event.record()
        self._pending.append(_Seen(step, on_host, event))
        found: list[str] = []
        while self._pending and (self._pending[0].has_arrived is None or self._pending[0].has_arrived.query()):
            seen = self._pending.popleft()
            found += self._compare(seen.step, seen.counts.tolist(), tokens)
        return found

    def is_hopeless(self, step: int) -> bool:
        """Returns whether no dictionary has made a step for long."""
        return all(since is not None and step - since >= _HOPELESS for since in self._idle_since)

    def _counts(self) -> Tensor:
        trainers = [job.trainer for job in self._jobs]
        if not trainers:  # a rank that has no dictionary
            return torch.zeros(0, 2)
        counts = [torch.stack([t.n_nonfinite_tokens.float(), t.optimizer.n_skipped.float()]) for t in trainers]
        return torch.stack([count.to(counts[0].device) for count in counts])

    def _compare(self, step: int, counts: list[list[float]], tokens: int) -> list[str]:
        found: list[str] = []
        for number, job in enumerate(self._jobs):
            skipped, before = counts[number][1], self._last[number][1]
            if skipped > before:
                self._idle_since[number] = step if self._idle_since[number] is None else self._idle_since[number]
            elif job.trainer.is_between_steps:
                self._idle_since[number] = None
            sites = ", ".join(map(str, job.sites.reads))
            for kind, remedy in enumerate(_REMEDIES):
                count, told = counts[number][kind], self._told[number][kind]
                if count > self._last[number][kind]:
                    found.append(f"'{job.name}' at {sites}: {count - self._last[number][kind]:.0f} {remedy}")
                if count > told and (told == 0 or count >= 2 * told):
                    self._told[number] = [*self._told[number][:kind], count, *self._told[number][kind + 1 :]]
                    logger.warning(
                        "Step %s (%s), '%s' at %s: so far %d %s",
                        f"{step:,}",
                        counted(tokens, "token"),
                        job.name,
                        sites,
                        count,
                        remedy,
                    )
        self._last = counts
        return found


class Patience:
    """Ends a run when no dictionary's FVU has become 1 % better in so many logs; None for never."""

    def __init__(self, n_logs: int | None):
        self.n_logs = n_logs
        self.best: dict[str, float] = {}
        self.n_without = 0

    def has_run_out(self, figures: Mapping[str, Mapping[str, float]]) -> bool:
        """Takes the figures of a log."""
        better = False
        for name, values in figures.items():
            fvu = values.get("fvu", float("inf"))
            if fvu < _IMPROVEMENT * self.best.get(name, float("inf")):
                self.best[name], better = fvu, True
        self.n_without = 0 if better else self.n_without + 1
        return self.n_logs is not None and self.n_without >= self.n_logs

    def state_dict(self) -> dict[str, Any]:
        """Returns what the next logs are compared with."""
        return {"best": dict(self.best), "n_without": self.n_without}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes."""
        self.best, self.n_without = dict(state["best"]), state["n_without"]
