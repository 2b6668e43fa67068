"""Caches that go on with other text or weights, or that are damaged: noticed, and refused."""

import shutil

import pytest

from dictionary_learning.activations.cache import ActivationCache, _writer as writing
from dictionary_learning.errors import DataError
from tests import tiny
from tests.activations.cache_files import DOCUMENTS, TEXTS, bytes_of, other_documents, stop_after_a_shard, traced, write


class TestOtherTextOrModel:
    def test_a_state_of_another_cache_is_refused_and_changes_nothing(self, tmp_path):
        write(tmp_path / "fine", shard_size=40)
        write(tmp_path / "coarse", shard_size=400)
        fine, coarse = (ActivationCache(tmp_path / name, out_batch_size=30) for name in ("fine", "coarse"))
        for _ in range(8):
            next(fine)
        before = coarse.state_dict()
        with pytest.raises(DataError, match="other shards than"):
            coarse.load_state_dict(fine.state_dict())
        assert coarse.state_dict() == before

    @pytest.mark.parametrize("kind", list(TEXTS))
    @pytest.mark.parametrize("n_tokens", [150, 100_000], ids=["complete", "ended"])
    @pytest.mark.covering(shows=lambda kind, n_tokens: {kind, n_tokens})  # texts are compared before counts
    def test_other_text_of_the_same_kind_is_refused(self, tmp_path, kind, n_tokens):
        make = TEXTS[kind]
        write(tmp_path / "cache", documents=make(tmp_path / "a", DOCUMENTS), n_tokens=n_tokens)
        before = bytes_of(tmp_path / "cache")
        with pytest.raises(DataError, match="the text is another one"):
            write(tmp_path / "cache", documents=make(tmp_path / "b", other_documents()), n_tokens=n_tokens)
        again = write(tmp_path / "cache", documents=make(tmp_path / "c", DOCUMENTS), n_tokens=n_tokens)
        assert again.is_complete
        assert bytes_of(tmp_path / "cache") == before

    @pytest.mark.parametrize("kind", list(TEXTS))
    def test_a_cache_that_is_not_complete_is_not_continued_with_other_text(self, tmp_path, monkeypatch, kind):
        make = TEXTS[kind]
        stop_after_a_shard(monkeypatch, lambda: write(tmp_path / "cache", documents=make(tmp_path / "a", DOCUMENTS)))
        with pytest.raises(DataError, match="the text is another one"):
            write(tmp_path / "cache", documents=make(tmp_path / "b", other_documents()))
        write(tmp_path / "cache", documents=make(tmp_path / "c", DOCUMENTS))
        write(tmp_path / "whole", documents=make(tmp_path / "d", DOCUMENTS))
        assert bytes_of(tmp_path / "cache") == bytes_of(tmp_path / "whole")

    def test_an_iterator_continues(self, tmp_path, monkeypatch):
        stop_after_a_shard(monkeypatch, lambda: write(tmp_path / "cache", documents=iter(DOCUMENTS)))
        write(tmp_path / "cache", documents=iter(DOCUMENTS))
        write(tmp_path / "whole", documents=iter(DOCUMENTS))
        assert bytes_of(tmp_path / "cache") == bytes_of(tmp_path / "whole")

    def test_other_weights_are_refused(self, tmp_path):
        write(tmp_path / "cache", n_tokens=100)
        other = traced(seed=1)
        with pytest.raises(DataError, match="the model has other weights"):
            write(tmp_path / "cache", n_tokens=100, model=other)
        with pytest.raises(DataError, match="other weights"):
            ActivationCache(tmp_path / "cache", model=other)
        with pytest.raises(DataError, match="other weights"):
            ActivationCache(tmp_path / "cache", model=tiny.model("llama", 1))
        for same in (traced(), tiny.model("llama", 0)):
            assert ActivationCache(tmp_path / "cache", model=same).n_rows == 100

    def test_a_cache_without_fingerprints_is_served_and_continued(self, tmp_path, monkeypatch):
        import json

        stop_after_a_shard(monkeypatch, lambda: write(tmp_path / "cache"))
        path = tmp_path / "cache" / "index.json"
        index = json.loads(path.read_text())
        del index["text_fingerprint"], index["model_fingerprint"]
        for shard in index["shards"]:
            del shard["crc32"]
        path.write_text(json.dumps(index))
        assert ActivationCache(tmp_path / "cache", model=traced(), out_batch_size=50).rows().n == 50
        assert write(tmp_path / "cache").is_complete


class TestDamage:
    @pytest.mark.parametrize("compression", [None, "zstd"])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
    def test_a_flipped_byte_is_noticed_when_the_shard_is_opened(self, tmp_path, compression, dtype):
        index = write(tmp_path / "cache", compression=compression, dtype=dtype)
        path = tmp_path / "cache" / index.shards[1].file
        content = bytearray(path.read_bytes())
        content[-9] ^= 4
        path.write_bytes(bytes(content))
        cache = ActivationCache(tmp_path / "cache", seed=None, out_batch_size=index.shards[0].n_rows)
        next(cache)
        with pytest.raises(DataError, match=r"shard_00001.*(checksum|cannot be read)"):
            next(cache)

    def test_checksums_are_compared_once(self, tmp_path, monkeypatch):
        index = write(tmp_path / "cache")
        cache = ActivationCache(tmp_path / "cache", out_batch_size=50, end_of_data="repeat")
        calls, crc32 = [], type(cache.store).crc32
        monkeypatch.setattr(type(cache.store), "crc32", lambda store, name: calls.append(name) or crc32(store, name))
        for _ in range(3 * index.n_rows // 50):
            next(cache)
        assert sorted(calls) == [shard.file for shard in index.shards]

    @pytest.mark.parametrize("whole", [True, False], ids=["folder", "shard"])
    def test_a_folder_removed_under_the_writer_is_an_error(self, tmp_path, monkeypatch, whole):
        write_shard = writing.write_shard

        def removes(store, name, *arguments):
            if name.startswith("shard_00002"):
                if whole:
                    shutil.rmtree(tmp_path / "cache")
                else:
                    (tmp_path / "cache" / "shard_00000.safetensors").unlink()
            return write_shard(store, name, *arguments)

        monkeypatch.setattr(writing, "write_shard", removes)
        with pytest.raises(DataError, match=r"was removed while|shard_00000.*is not there"):
            write(tmp_path / "cache")
        if (tmp_path / "cache" / "index.json").exists():
            assert '"complete": false' in (tmp_path / "cache" / "index.json").read_text()
