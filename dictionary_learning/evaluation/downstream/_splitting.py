"""Which texts train probes, and which test them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from dictionary_learning.errors import DataError
from dictionary_learning.evaluation.downstream._tasks import ProbeTask

LEAST_PER_CLASS = 2
"""Texts of a class in training, and in the test."""
TEST_SHARE = 0.25
FEW_TEXTS = 20
"""Texts for the test, below which figures say little."""


class Problem(NamedTuple):
    """Whether a text is of one class; numbers are of `Split.texts`."""

    name: str
    train: Int[np.ndarray, "n_train"]
    test: Int[np.ndarray, "n_test"]
    truth: Bool[np.ndarray, "texts"]


class Split(NamedTuple):
    """The texts of a task that are read, those of training first."""

    texts: tuple[str, ...]
    labels: Int[np.ndarray, "texts"]
    n_train: int
    problems: tuple[Problem, ...]
    classes: tuple[str, ...]

    @property
    def n_test(self) -> int:
        """How many texts are for the test."""
        return len(self.texts) - self.n_train

    @property
    def n_least(self) -> int:
        """How many texts for the test are of the smaller side of a problem."""
        sides = [problem.truth[problem.test] for problem in self.problems]
        return min(min(int(side.sum()), int((~side).sum())) for side in sides)


def split_task(task: ProbeTask, *, n_train: int, n_test: int, balanced: bool, seed: int) -> Split:
    """Returns a quarter of a task's texts for the test, up to `n_test`, and others for training.

    Both have each class as often, if they are balanced, else as often as the task has it. A task of
    two classes is one problem, that of the second class; one of more has a problem for each class,
    against as many others.

    Raises:
        DataError: there are fewer than two classes with enough texts.
    """
    random = np.random.default_rng(abs(seed))
    labels = np.asarray(task.labels)
    groups = [random.permutation(np.flatnonzero(labels == number)) for number in range(len(task.classes))]
    enough = [number for number, group in enumerate(groups) if len(group) >= 2 * LEAST_PER_CLASS]
    if len(enough) < 2:
        counts = ", ".join(f"{name}: {len(group)}" for name, group in zip(task.classes, groups, strict=True)) or "none"
        raise DataError(
            f"Task '{task.name}' has these texts by class: {counts}. A probe needs two classes with at least "
            f"{2 * LEAST_PER_CLASS} different texts each. Give more texts."
        )
    kept = [groups[number] for number in enough]
    tests, trains = _shares(kept, n_train, n_test, balanced)
    train = random.permutation(np.concatenate([g[n : n + m] for g, n, m in zip(kept, tests, trains, strict=True)]))
    test = random.permutation(np.concatenate([g[:n] for g, n in zip(kept, tests, strict=True)]))
    chosen = np.concatenate([train, test])
    found = labels[chosen]
    wanted = enough[1:] if len(enough) == 2 else enough
    problems = [_problem(task.classes[n], found == n, len(train), balanced, random) for n in wanted]
    names = tuple(task.classes[number] for number in enough)
    return Split(tuple(task.texts[n] for n in chosen), found, len(train), tuple(problems), names)


def few_texts(name: object, n_test: float) -> str:
    """Returns a sentence where a task is tested on few texts; else nothing."""
    if n_test >= FEW_TEXTS:
        return ""
    return (
        f"Task '{name}' is tested on {n_test:.0f} texts, a quarter of them all: figures of so few say little, and an "
        f"AUC of 1 may be chance. Label at least {FEW_TEXTS * 4} texts."
    )


def _shares(groups: Sequence[np.ndarray], n_train: int, n_test: int, balanced: bool) -> tuple[list[int], list[int]]:
    """Returns how many texts of each class are for the test, and for training."""
    sizes = [min(map(len, groups))] * len(groups) if balanced else [len(group) for group in groups]
    total = sum(sizes)
    tests = [
        min(max(round(min(TEST_SHARE, n_test / total) * size), LEAST_PER_CLASS), size - LEAST_PER_CLASS)
        for size in sizes
    ]
    rest = total - sum(tests)
    share = min(1.0, n_train / rest)
    trains = [
        min(max(int(share * (size - test) + 0.5), LEAST_PER_CLASS), size - test)
        for size, test in zip(sizes, tests, strict=True)
    ]
    return tests, trains


def _problem(name: str, truth: np.ndarray, n_train: int, balanced: bool, random: np.random.Generator) -> Problem:
    def part(numbers: np.ndarray) -> np.ndarray:
        yes, no = numbers[truth[numbers]], numbers[~truth[numbers]]
        if balanced:
            n = min(len(yes), len(no))
            yes, no = random.permutation(yes)[:n], random.permutation(no)[:n]
        return np.concatenate([yes, no])[random.permutation(len(yes) + len(no))]

    return Problem(name, part(np.arange(n_train)), part(np.arange(n_train, len(truth))), truth)
