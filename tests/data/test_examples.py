import pytest
import torch

from dictionary_learning.data import ExampleBatch, ExampleStream
from dictionary_learning.errors import ConfigError, DataError

DATA = [torch.full((2,), float(n)) for n in range(7)]


def stream(data=DATA, **options) -> ExampleStream:
    return ExampleStream(data, lambda examples: {"x": torch.stack(examples)}, **options)


def firsts(batches) -> list[float]:
    return [float(row[0]) for batch in batches for row in batch.inputs["x"]]


def test_batches_unpack_into_inputs_and_mask():
    inputs, mask = stream().take(3)
    assert inputs["x"].shape == (3, 2) and mask is None
    assert stream().take(3).n_examples == 3


def test_every_example_is_served_once_and_the_last_batch_is_smaller():
    it = stream()
    batches = list(it.batches(3))
    assert [batch.n_examples for batch in batches] == [3, 3, 1] and firsts(batches) == list(range(7))
    assert it.take(3) is None


def test_restart_begins_again():
    it = stream()
    it.take(5)
    it.restart()
    assert firsts(it.batches(4)) == list(range(7))


def test_random_order_holds_every_example_and_changes_with_the_epoch():
    it = stream(seed=0)
    first = firsts(it.batches(3))
    it.restart()
    second = firsts(it.batches(3))
    assert sorted(first) == sorted(second) == list(range(7)) and first != second
    assert firsts(stream(seed=0).batches(2)) == first


@pytest.mark.parametrize("seed", [None, 3])
def test_stream_goes_on_from_its_state(seed):
    it = stream(seed=seed)
    it.take(5)
    it.restart()
    it.take(2)
    other = stream(seed=seed)
    other.load_state_dict(it.state_dict())
    assert firsts(other.batches(2)) == firsts(it.batches(2))


def test_state_of_other_data_is_refused():
    with pytest.raises(DataError, match="Pass the data that the run was started with"):
        stream(name="a").load_state_dict(stream(name="b").state_dict())


def test_data_without_numbers_goes_on_by_skipping():
    class Once:
        def __iter__(self):
            return iter(DATA)

    it = stream(Once())
    it.take(3)
    other = stream(Once())
    other.load_state_dict(it.state_dict())
    assert firsts(other.batches(2)) == [3, 4, 5, 6]
    it.restart()
    assert firsts(it.batches(7)) == list(range(7))
    with pytest.raises(ConfigError, match="read in its own order"):
        stream(Once(), seed=0)


def test_data_that_can_be_read_once_does_not_restart():
    it = stream(iter(DATA))
    it.take(2)
    with pytest.raises(DataError, match="can be read only once"):
        it.restart()


def test_mask_is_taken_from_the_inputs():
    mask = torch.tensor([[True, False], [True, True]])
    it = ExampleStream([0, 1], lambda n: {"x": torch.zeros(2, 2, 3), "attention_mask": mask.long()}, ctx_len=2)
    assert torch.equal(it.take(2).attention_mask, mask)
    other = ExampleStream([0, 1], lambda n: {"x": torch.zeros(2, 4, 3), "attention_mask": mask.long()}, ctx_len=4)
    assert other.take(2).attention_mask is None


def test_tensors_and_tuples_are_inputs_by_position():
    assert isinstance(ExampleStream(DATA, torch.stack).take(2), ExampleBatch)
    (x,), _ = ExampleStream(DATA, torch.stack).take(2)
    assert torch.equal(x, torch.stack(DATA[:2]))
    (a, b), _ = ExampleStream(DATA, lambda d: (torch.stack(d), 1.0)).take(2)
    assert torch.equal(a, x) and b == 1.0


def test_what_feeds_no_rows_is_refused():
    with pytest.raises(DataError, match="gave a list for 2 examples.*with 2 rows"):
        ExampleStream(DATA, lambda d: d[0].tolist()).take(2)
    with pytest.raises(DataError, match="with 3 rows"):
        ExampleStream(DATA, lambda d: {"x": torch.stack(d[:1])}).take(3)
    with pytest.raises(ConfigError, match="Got ctx_len=0 in ExampleStream"):
        stream(ctx_len=0)
