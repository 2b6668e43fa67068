"""Which rank is named as the slow one."""

import logging

import pytest

from dictionary_learning import training
from dictionary_learning.parallel import Waits
from tests.parallel.threads import run_threads

LONG = 1000.0
"""Seconds: more than these steps take on any machine."""


@pytest.mark.parametrize(("waited", "named"), [((LONG, 1.0, LONG), "rank 1"), ((0.0, 0.0, 0.0), None)])
def test_the_rank_that_others_wait_for_is_named(waited, named, caplog):
    def steps():
        ranks = training.start()
        seconds = [0.0]
        ranks.waited = lambda: seconds[0]
        waits = Waits(ranks, every=4)
        for step in range(8):
            seconds[0] = waited[ranks.rank] * (step + 1)
            waits.step()

    with caplog.at_level(logging.WARNING):
        run_threads(3, steps)
    said = [line for line in caplog.messages if "The ranks wait for" in line]
    assert len(said) == (6 if named else 0)  # of each thread; of processes, the first one alone talks
    assert all(named in line for line in said)
