"""A cache that several ranks write: the rows of one process, in parts, whatever happens in between."""

import itertools
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dictionary_learning import load_dictionary, trainSAE
from dictionary_learning._run_folder import claim_run_folder
from dictionary_learning.activations._reader import RowReader
from dictionary_learning.activations.cache import ActivationCache, _writer as writing
from dictionary_learning.cli import main
from dictionary_learning.data import ExampleStream
from dictionary_learning.errors import DataError
from tests import tiny
from tests.activations.cache_files import DOCUMENTS, FIRST, TEXTS, write
from tests.parallel.ranks import results, run_ranks
from tests.parallel.test_torchrun import ROOT, SECONDS, environment

SIZE = {"shard_size": 40}
PADDED = {**SIZE, "pack": False}
"""A context holds one document, so that activations do not depend on the share."""
TRAINED = {"trainer": "top_k", "k": 3, "dict_size": 48, "site": "model.layers.0", "lr": 3e-3}
OWN = {"progress": False, "device": "cpu"}
LIMIT = {**SIZE, "max_activation_norm_multiple": 1.05}
FEW = (1, 3)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def by_place(path) -> dict[tuple[int, int], torch.Tensor]:
    """Returns the rows at the first site by document and position; none is there twice."""
    cache, found = ActivationCache(path, out_batch_size=50), {}
    while not cache._at_end():
        rows = cache.rows()
        for x, *place in zip(rows.activations[FIRST], rows.document.tolist(), rows.position.tolist(), strict=True):
            assert tuple(place) not in found
            found[tuple(place)] = x
    return found


def said(act) -> str:
    """Returns which error something raises, and what it says."""
    try:
        act()
    except Exception as error:  # noqa: BLE001  (looked at by the parent)
        return f"{type(error).__name__}: {error}"
    return ""


def failing_at(number: int, rank: int, folder: Path) -> str:
    """Returns what is said where the n-th file of a rank cannot be put in its place; then writes the rest."""
    replace, calls = os.replace, itertools.count()

    def fails_once(source, target):
        if next(calls) == number and int(os.environ["RANK"]) == rank:
            raise OSError("no disk")
        replace(source, target)

    os.replace = fails_once
    try:
        found = said(lambda: write(folder, **LIMIT))
    finally:
        os.replace = replace
    write(folder, **LIMIT)
    return found


def trained_on(path):
    cache = ActivationCache(path, out_batch_size=16)
    (dictionary,) = trainSAE(cache, TRAINED, 6, placement="data", **OWN)
    return dict(dictionary.state_dict())


def read_by_rank_1_fails(folder):
    read = RowReader.read

    def fails(self, n):
        if os.environ["RANK"] == "1":
            raise DataError("the text is gone.")
        return read(self, n)

    RowReader.read = fails
    try:
        return said(lambda: write(folder, **PADDED))
    finally:
        RowReader.read = read


def on_a_small_disk(folder, share):
    """Writes where the disk has room for a share of the rows, of two sites with their places."""
    free = share * 500 * (4 * 2 * tiny.DIM + 12)
    known, writing.Store.free = writing.Store.free, lambda self: free
    try:
        return said(lambda: write(folder, n_tokens=500, dtype="float32"))
    finally:
        writing.Store.free = known


def of_kind(folder, kind):
    """Returns the number of rows of a kind of text, of which each process has its own."""
    text = TEXTS[kind](folder / f"text of {os.environ.get('RANK')}", DOCUMENTS)
    return write(folder / f"{kind} {os.environ.get('WORLD_SIZE')}", documents=text).n_rows


def scenarios(folder):
    """Writes with two ranks all that the tests below look at, in one pair of processes."""
    logging.disable(logging.ERROR)
    write(folder / "padded", **PADDED)
    examples = ExampleStream([torch.ones(16, dtype=torch.long)] * 3, torch.stack, ctx_len=16)
    return {
        "index": write(folder / "limit", **LIMIT),
        "counted": [write(folder / f"counted {n}", n_tokens=n) for n in (257, 1, 10**6)],
        "few": [write(folder / f"few {n}", documents=DOCUMENTS[:n], **PADDED).n_rows for n in FEW],
        "no text": said(lambda: write(folder / "none", documents=["w1"], seqpos_slice=(9, 12))),
        "failing": {
            (number, rank): failing_at(number, rank, folder / f"failed {number} {rank}")
            for number, rank in ((0, 0), (1, 1), (2, 0), (8, 1), (30, 0))
        },
        "failed": read_by_rank_1_fails(folder / "broken"),
        "examples": said(lambda: write(folder / "examples", documents=examples)),
        "disk": [on_a_small_disk(folder / "disk", share) for share in (0.7, 1.1)],
        "claimed": said(lambda: write(folder / "claimed", **PADDED)),
        "kinds": {kind: of_kind(folder, kind) for kind in TEXTS},
        "trained": trained_on(folder / "padded"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(scope="module")
def two(folder):
    with claim_run_folder(folder / "claimed"):  # by this process
        return results(2, scenarios, folder)


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("alone")
    write(path / "padded", **PADDED)
    return by_place(path / "padded")


def assert_same_rows(found, wanted):
    assert found.keys() == wanted.keys()
    for place, x in wanted.items():
        torch.testing.assert_close(found[place], x, rtol=1e-5, atol=1e-6)  # another batch has another padding


def test_the_rows_are_those_of_one_process_with_their_documents_and_places(two, folder, alone):
    assert_same_rows(by_place(folder / "padded"), alone)
    index = ActivationCache(folder / "padded").index
    assert index.is_complete and index.settings["parts"] == 2
    assert [shard.file[:8] for shard in index.shards[:4]] == ["part_000", "part_001"] * 2
    ActivationCache(folder / "padded").verify()


def test_packed_text_has_each_word_at_most_once_and_one_limit_of_norms(two, folder):
    words = {(d, p): int(w[1:]) + 3 for d, text in enumerate(DOCUMENTS) for p, w in enumerate(text.split())}
    cache = ActivationCache(folder / "limit", out_batch_size=50)
    found, norms = {}, []
    while not cache._at_end():
        rows = cache.rows()
        found |= dict(
            zip(zip(rows.document.tolist(), rows.position.tolist(), strict=True), rows.token.tolist(), strict=True)
        )
        norms.append(rows.activations[FIRST].norm(dim=-1))
    assert found.items() <= words.items() and len(found) == cache.n_rows
    limits = [
        json.loads((folder / "limit" / part / "index.json").read_text())["filter"] for part in ("part_000", "part_001")
    ]
    assert limits[0] == limits[1] == cache.index.filter and torch.cat(norms).max() <= cache.norm_limits[FIRST]
    dropped = cache.index.dropped
    assert (
        dropped["norm"] > 0
        and dropped["read"] - sum(n for name, n in dropped.items() if name != "read") == cache.n_rows
    )


def test_a_number_of_rows_is_split_exactly(two):
    exact, one, all_rows = two[0]["counted"]
    assert exact.n_rows == 257 and one.n_rows == 1
    n_parts = [sum(s.n_rows for s in exact.shards if s.file.startswith(part)) for part in ("part_000", "part_001")]
    assert n_parts == [128, 129] and exact.settings["n_tokens"] == 257
    assert 800 < all_rows.n_rows < 10**6 and all_rows.is_complete
    assert two[1]["counted"] == two[0]["counted"]


@pytest.mark.parametrize("kind", TEXTS)
def test_each_kind_of_text_is_divided(two, tmp_path, kind):
    assert two[0]["kinds"][kind] == two[1]["kinds"][kind] == of_kind(tmp_path, kind)


@pytest.mark.parametrize("place", range(len(FEW)))
def test_fewer_documents_than_ranks_are_no_fault(two, folder, alone, place):
    n = FEW[place]
    assert two[0]["few"][place] == two[1]["few"][place] == sum(document < n for document, _ in alone)
    assert by_place(folder / f"few {n}").keys() == {where for where in alone if where[0] < n}


def test_a_failed_rank_ends_all_and_the_next_start_writes_the_same_bytes(two, folder):
    whole = contents(folder / "limit")
    for (number, rank), found in two[0]["failing"].items():
        other = two[1]["failing"][number, rank]
        own, others = (found, other) if rank == 0 else (other, found)
        if number == 30:  # there are fewer files
            assert own == others == ""
        else:
            assert "no disk" in own and others.startswith("RankError: Rank ") and "no disk" in others
        assert contents(folder / f"failed {number} {rank}") == whole
    assert two[1]["failed"].startswith("DataError: the text is gone")
    assert two[0]["failed"].startswith("RankError: Rank 1 ended the job: DataError: the text is gone")


def test_what_cannot_be_written_is_refused_on_all_ranks(two, folder):
    assert two[0]["no text"].startswith("DataError") and "no token that counts" in two[0]["no text"]
    assert all("cannot be divided among ranks" in rank["examples"] for rank in two)
    # 500 rows of two sites: one part would fit on the smaller disk
    (small, large), (silent, _) = (rank["disk"] for rank in two)
    assert "500 rows take" in small and large == "" and silent.startswith("RankError: Rank 0 ended the run")
    assert two[0]["claimed"].startswith("ConfigError: Process ") and two[1]["claimed"].startswith("RankError")


def test_any_number_of_ranks_trains_on_it(two, folder):
    batches = list(ActivationCache(folder / "padded", "model.layers.0", out_batch_size=16))
    pairs = [torch.cat(batches[n : n + 2]) for n in range(0, len(batches), 2)]
    (wanted,) = trainSAE(pairs, {**TRAINED, "site": None}, 6, **OWN)
    for name, value in wanted.state_dict().items():
        assert torch.equal(two[0]["trained"][name], two[1]["trained"][name])
        torch.testing.assert_close(two[0]["trained"][name], value, rtol=1e-3, atol=1e-4)


def killed(folder, after):
    """Writes until rank 1 is killed, as it has written some files."""
    write_shard, calls = writing.write_shard, itertools.count()

    def dies(*given):
        if next(calls) == after and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return write_shard(*given)

    writing.write_shard = dies
    write(folder, **PADDED)


def again(folder):
    return said(lambda: write(folder / "killed", **PADDED)), write(folder / "padded", **PADDED).n_rows


def test_a_killed_job_goes_on_with_as_many_ranks_only(two, folder, alone, tmp_path):
    path = tmp_path / "killed"
    ended = run_ranks(2, killed, path, 3)
    assert ended[1] == ("killed", -signal.SIGKILL) and ended[0][1].startswith("RankError: Rank 0 of 2 has lost")
    assert not ActivationCache(path).index.is_complete and len(list(path.rglob("shard_*"))) > 4
    with pytest.raises(DataError, match="begun by 2 processes.*has 1. Start 2, as by torchrun --nproc-per-node 2"):
        write(path, **PADDED)
    (tmp_path / "padded").symlink_to(folder / "padded")
    for kind, found in run_ranks(3, again, tmp_path):
        assert kind == "result", found
        refused, n_rows = found
        assert "begun by 2 processes" in refused and "has 3" in refused
        assert n_rows == len(alone)  # what is complete is left as it is
    assert [found for found, _ in results(2, again, tmp_path)] == ["", ""]
    assert contents(path) == contents(folder / "padded")


def three(folder):
    return write(folder / "three", **PADDED).n_rows


def test_three_ranks_write_the_rows_of_one(alone, tmp_path):
    assert results(3, three, tmp_path) == [len(alone)] * 3
    assert_same_rows(by_place(tmp_path / "three"), alone)
    before = contents(tmp_path / "three")
    assert write(tmp_path / "three", **PADDED).n_rows == len(alone)
    assert contents(tmp_path / "three") == before
    with pytest.raises(DataError, match="other settings"):
        write(tmp_path / "three", **PADDED, seed=4)


def test_through_the_shell(tmp_path, caplog):
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n\n".join(tiny.documents(100)))
    places = [str(tmp_path / "model"), str(tmp_path / "text.txt")]
    cache = [
        "cache",
        *places,
        "--layers",
        "1",
        "--ctx-len",
        "16",
        "--out",
        str(tmp_path / "cache"),
        "--n-tokens",
        "601",
    ]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dictionary_learning"]
    done = subprocess.run(
        [sys.executable, "-P", *torchrun, *cache],
        cwd=ROOT, env=environment(), timeout=SECONDS, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert ActivationCache(tmp_path / "cache").n_rows == 601
    train = ["train", "--cache", str(tmp_path / "cache"), "--k", "3", "--dict-size", "32", "--n-tokens", "600"]
    assert main([*train, "--batch-size", "60", "--save-dir", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert caplog.text.count("Training on") == 1
    assert load_dictionary(tmp_path / "run" / "trainer_0").dict_size == 32
