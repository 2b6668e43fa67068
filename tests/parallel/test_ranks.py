"""What ranks tell each other, against the same on all values at once; and what placements cost."""

import os

import pytest
import torch
import torch.distributed as dist

from dictionary_learning._plain import as_bytes
from dictionary_learning.cli import main
from dictionary_learning.errors import ConfigError, RankError
from dictionary_learning.parallel import ALONE, Sizes, costs, kth_largest, on_first, place, start
from tests import tiny
from tests.parallel.ranks import results
from tests.tiny import Planted

N_RANKS = 3
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.long)
KTH = (1, 5, 17, 60, 1000)


def part(rank: int) -> torch.Tensor:
    """Returns rows of a rank: of another number on each, with equal values among them, and none on the last."""
    generator = torch.Generator().manual_seed(rank)
    return (torch.randn(7 * (N_RANKS - 1 - rank), 3, generator=generator).abs() * 4).round() / 4


def everything():
    ranks = start()
    own = part(ranks.rank)
    gradient = own.clone().requires_grad_()
    mean = ranks.mean(gradient.mean(0), len(own)) if len(own) else ranks.mean(torch.zeros(3), 0)
    if len(own):
        mean.square().sum().backward()
    try:
        on_first(ranks, lambda: place("dictionary", ranks, [], n_tokens=1, row_bytes=1, needs_contexts=True))
        told = ""
    except (ConfigError, RankError) as error:
        told = f"{type(error).__name__}: {error}"
    tensors = [torch.full((2,), float(ranks.rank)), torch.full((3,), 1.0)]
    ranks.sum_(tensors)
    lent = torch.full((2,), 3.0, requires_grad=True)
    added = ranks.add(ranks.lend(lent) * (ranks.rank + 1))
    added.square().sum().backward()
    column, row = ranks.grid(1)
    none, everyone = ranks.grid(N_RANKS)
    size = os.environ.pop("WORLD_SIZE")  # as where a script has connected them
    again = start().size
    os.environ["WORLD_SIZE"] = size
    first = [torch.full((2,), float(ranks.rank + 5))]
    ranks.take_first_(first)
    return {
        "sum": ranks.sum(torch.full((2,), ranks.rank + 1)),
        "minimum": ranks.minimum(torch.tensor(float(5 - ranks.rank))),
        "gather": {dtype: ranks.gather(own.to(dtype)) for dtype in DTYPES},
        "column": ranks.gather(own[:, 0]),
        "mean": mean.detach(),
        "gradient": gradient.grad,
        "kth": {k: kth_largest(own.flatten(), k, ranks) for k in KTH},
        "nothing": kth_largest(torch.zeros(0), 3, ranks),
        "tell": ranks.tell([ranks.rank, 7]),
        "total": ranks.total(ranks.rank),
        "collect": ranks.collect({"rank": ranks.rank}),
        "share": ranks.share("first" if ranks.is_first else None),
        "told": told,
        "sum_": tensors,
        "first": first,
        "again": again,
        "stack": ranks.stack(torch.tensor([ranks.rank, 1])),
        "added": (added.detach(), lent.grad),
        "grid": [one.total(1) for one in (column, row, none, everyone)],
        "sent": sent(),
    }


def sent():
    """Returns bytes of floats in all-reduces of a step, and those of activations that are gathered."""
    from dictionary_learning import trainSAE

    found = {"data": 0, "dictionary": 0, "latent": 0}
    reduce, gather = dist.all_reduce, dist.all_gather
    for placement in found:

        def counted(x, *given, placement=placement, **named):
            found[placement] += x.nbytes * 2 * (N_RANKS - 1) // N_RANKS
            return reduce(x, *given, **named)

        def counted_too(parts, x, *given, placement=placement, **named):
            found[placement] += x.nbytes * (N_RANKS - 1)
            return gather(parts, x, *given, **named)

        dist.all_reduce, dist.all_gather = counted, counted_too
        data = list(Planted().batches(2 * N_RANKS, 512))
        config = [{"trainer": "top_k", "k": 4, "dict_size": 2048, "seed": seed} for seed in range(N_RANKS)]
        for steps in (2, 1):  # the difference is a step
            found[placement] *= -1
            trainSAE(data, config, steps, progress=False, device="cpu", placement=placement, log_steps=100)
        found[placement] *= -1
    dist.all_reduce, dist.all_gather = reduce, gather
    return found


@pytest.fixture(scope="module")
def told():
    return results(N_RANKS, everything)


def test_sums_and_rows_are_those_of_all(told):
    whole = torch.cat([part(rank) for rank in range(N_RANKS)])
    for one in told:
        assert one["sum"].tolist() == [6, 6] and one["minimum"] == 3
        assert [x.tolist() for x in one["sum_"]] == [[3.0, 3.0], [3.0] * 3] and one["first"][0].tolist() == [5.0, 5.0]
        assert all(torch.equal(rows, whole.to(dtype)) for dtype, rows in one["gather"].items())
        assert torch.equal(one["column"], whole[:, 0])
        torch.testing.assert_close(one["mean"], whole.mean(0))
        assert one["again"] == N_RANKS
        assert one["tell"] == [[0, 7], [1, 7], [2, 7]] and one["total"] == 3
        assert one["collect"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}] and one["share"] == "first"


def test_terms_of_one_sum_and_what_all_have_get_the_gradients_of_one_process(told):
    x = torch.full((2,), 3.0, requires_grad=True)
    whole = x * (1 + 2 + 3)
    whole.square().sum().backward()
    for one in told:
        assert one["stack"].tolist() == [[0, 1], [1, 1], [2, 1]] and one["grid"] == [3, 1, 1, 3]
        torch.testing.assert_close(one["added"][0], whole.detach())
        torch.testing.assert_close(one["added"][1], x.grad)


def test_gradient_of_a_mean_is_that_of_the_own_mean(told):
    whole = torch.cat([part(rank) for rank in range(N_RANKS)]).requires_grad_()
    whole.mean(0).square().sum().backward()
    # each rank's loss is weighted by its share of the tokens
    n = len(part(0))
    torch.testing.assert_close(told[0]["gradient"] * n / len(whole), whole.grad[:n])


@pytest.mark.parametrize("k", KTH)
def test_kth_largest_is_exact_with_ties_and_without_enough_values(told, k):
    values = torch.cat([part(rank) for rank in range(N_RANKS)]).flatten()
    for one in told:
        assert one["kth"][k] == kth_largest(values, k) == values.sort(descending=True).values[:k][-1]
        assert one["nothing"] == kth_largest(torch.zeros(0), 3) == torch.inf


def test_what_rank_zero_refuses_is_raised_on_all(told):
    first, *others = (one["told"] for one in told)
    assert first.startswith("ConfigError: Got placement='dictionary' with contexts")
    assert all(one.startswith("RankError: Rank 0 ended the run: Got placement='dictionary'") for one in others)


@pytest.mark.parametrize("placement", ["data", "dictionary", "latent"])
def test_bytes_that_are_sent_are_those_of_the_model(told, placement):
    sizes = [Sizes(32, 32, 2048, 4)] * N_RANKS
    (cost,) = (c for c in costs(sizes, 512 * N_RANKS, N_RANKS, 32 * 4) if c.placement == placement)
    assert told[0]["sent"][placement] == pytest.approx(cost.sent, rel=0.1)


def test_costs_grow_where_they_must():
    wide, narrow = Sizes(2304, 2304, 2**20, 64), Sizes(2304, 2304, 2**14, 64)
    one_wide = costs([wide], 32_768, 8, 2304 * 2)
    # seven of eight ranks would have no dictionary, or all would send gradients
    assert [cost.placement for cost in one_wide] == ["latent", "data", "dictionary"]
    largest = costs([wide._replace(dict_size=2**24)], 32_768, 64, 2304 * 2, memory=140 * 10**9)
    assert largest[0].placement == "latent" and largest[0].memory < 140 * 10**9 < min(c.memory for c in largest[1:])
    assert costs([narrow] * 8, 32_768, 8, 8 * 2304 * 2)[0].placement == "dictionary"
    by_name = {cost.placement: cost for cost in costs([narrow] * 8, 32_768, 8, 8 * 2304 * 2)}
    assert by_name["data"].memory > 4 * by_name["dictionary"].memory
    assert by_name["data"].sent == pytest.approx(2 * 7 / 8 * 8 * narrow.n_parameters * 4, rel=0.01)
    assert place("data", ALONE, [wide], n_tokens=1, row_bytes=1).name == "none"


def test_plan_shows_what_auto_would_take(tmp_path, capsys):
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    assert main(["plan", str(tmp_path / "model"), "--dict-size", "1k", "1m", "--gpus", "1", "8"]) == 0
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title == "6 dictionaries at 3 sites, steps of 32,768 tokens"
    assert [line.split()[:2] for line in lines[:1]] == [["1", "none"]]
    assert sorted(line.split()[1] for line in lines[1:]) == ["data", "dictionary", "latent"]
    assert main(["plan", str(tmp_path / "model"), "--dict-size", "none"]) == 2
    words = ["plan", str(tmp_path / "model"), "--layers", "1", "--dict-size", "1k"]
    assert main([*words, "--gpus", "2"]) == 0
    one, two = (capsys.readouterr().out, main([*words, "--gpus", "3", "--tracing-ranks", "1"]))
    *lines, apart = capsys.readouterr().out.splitlines()
    # two GPUs train as before
    assert two == 0 and [line[4:] for line in lines] == [line[4:] for line in one.splitlines()]
    parameters = sum(p.numel() for p in tiny.model().parameters())
    rows = 1024 * 128 * tiny.model().config.hidden_size * 2
    assert apart == (
        f"of 3 GPUs, 1 trace: each holds {as_bytes(2 * parameters + 2 * rows)} of model and rows; the others, up "
        f"to {as_bytes(rows // 2)} of rows in main memory"
    )
    assert main([*words, "--gpus", "2", "--tracing-ranks", "2"]) == 2


@pytest.mark.parametrize("words", [["info"], ["pretrained", "gemma"], ["train", "m", "d", "--dry-run"]])
def test_commands_of_one_process_refuse_several(words, monkeypatch, caplog):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words) == 2
    assert "in one process, and this job has 2" in caplog.text


def test_several_processes_that_cannot_be_connected_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="Start them by torchrun"):
        start()
