"""Schedules rise, stay or fall as they say, and never stop a run at its first step."""

import math

import pytest

from dictionary_learning.errors import ConfigError, UnknownNameError
from dictionary_learning.trainers._schedules import (
    SCHEDULES,
    Cosine,
    Rewarm,
    WarmupDecay,
    constant,
    ramp,
)


def built(name: str, steps: int, warmup: int):
    options = {"linear": {"decay_start": max(warmup, steps // 2)}}
    return SCHEDULES[name](steps=steps, warmup=warmup, **options.get(name, {}))


@pytest.mark.parametrize("warmup", [0, 1, 7, 40])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_factor_is_above_zero_in_the_run_and_at_most_one(name, warmup):
    schedule = built(name, 40, warmup)
    factors = [schedule(step) for step in range(40)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: max(warmup, 1)] == pytest.approx([(t + 1) / max(warmup, 1) for t in range(max(warmup, 1))])
    assert all(0 <= schedule(step) <= 1 for step in (40, 41, 1000))


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_warm_up_that_does_not_fit_is_refused(name):
    with pytest.raises(ConfigError, match="warmup_steps=11"):
        built(name, 10, 11)
    with pytest.raises(ConfigError, match="warmup_steps=-1"):
        built(name, 10, -1)


def test_names_are_known():
    assert set(SCHEDULES) == {"constant", "linear", "cosine", "cosine_restarts"}
    assert SCHEDULES["linear"] is WarmupDecay
    with pytest.raises(UnknownNameError, match="Did you mean 'cosine'"):
        SCHEDULES["cosin"]


def test_linear_is_as_it_was():
    schedule = WarmupDecay(10, 2, 8)
    assert [schedule(t) for t in range(11)] == [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 0.5, 0]
    assert constant(10, 2)(1000) == 1


def test_cosine_is_halfway_in_the_middle_and_ends_at_its_last_factor():
    schedule = Cosine(110, 10, final=0.2)
    assert [schedule(t) for t in (10, 60, 110, 500)] == pytest.approx([1, 0.6, 0.2, 0.2])
    assert [schedule(t) for t in range(10, 111)] == sorted((schedule(t) for t in range(10, 111)), reverse=True)


def test_restarts_begin_at_one_each_time():
    schedule = Cosine(105, 5, n_cycles=4, final=0.0)
    assert [schedule(5 + 25 * cycle) for cycle in range(4)] == [1] * 4
    assert all(schedule(4 + 25 * cycle) < 0.01 for cycle in range(1, 5))
    one = Cosine(60, 10, n_cycles=1)
    assert [one(t) for t in range(70)] == pytest.approx([Cosine(60, 10)(t) for t in range(70)])
    with pytest.raises(ConfigError, match="n_cycles=0"):
        Cosine(10, 0, n_cycles=0)
    with pytest.raises(ConfigError, match="n_cycles=6"):
        Cosine(10, 5, n_cycles=6)


@pytest.mark.parametrize("final", [-0.1, 1.1, math.nan])
def test_last_factor_that_cannot_be_used_is_refused(final):
    with pytest.raises(ConfigError, match="final="):
        Cosine(10, 0, final=final)


def test_ramp_increases_to_one_and_stays():
    assert [ramp(t, 4) for t in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert ramp(0, 0) == 1


def test_rewarming_rises_after_each_event():
    schedule = Rewarm(constant(100), every=10, warmup=4)
    rise = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]
    assert [schedule(t) for t in range(100)] == [1] * 10 + rise * 9


def test_rewarming_multiplies_and_keeps_the_first_warm_up():
    inner = WarmupDecay(40, 8, 20)
    schedule = Rewarm(inner, every=20, warmup=2)
    assert [schedule(t) for t in range(20)] == [inner(t) for t in range(20)]
    assert schedule(20) == 0.5 * inner(20) and schedule(21) == inner(21)
    assert Rewarm(inner, every=5, warmup=0)(5) == inner(5)


def test_rewarming_that_cannot_be_is_refused():
    for every, warmup in ((0, 0), (3, 4), (3, -1)):
        with pytest.raises(ConfigError, match=f"every {every} steps"):
            Rewarm(constant(10), every=every, warmup=warmup)
