"""Whatever becomes of a file, reading it gives a dictionary or an error of ours."""

import logging

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.interop.corrupting import ONE_OF_EACH, WAYS, corrupt, read_corrupted


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    logging.getLogger("dictionary_learning").setLevel(logging.ERROR)
    yield tmp_path_factory.mktemp("fuzz")
    logging.getLogger("dictionary_learning").setLevel(logging.NOTSET)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@settings(
    max_examples=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(file_index=st.integers(0, 5), way=st.sampled_from(WAYS), seed=st.integers(0, 1 << 30))
def test_damaged_files_are_read_or_refused(work, name, file_index, way, seed):
    assert read_corrupted(name, file_index, way, seed, work) in ("read", "refused")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_damages(way):
    data = b'{"k": 4, "d_in": 16}' * 30
    assert any(corrupt(data, way, seed) != data for seed in range(5))
