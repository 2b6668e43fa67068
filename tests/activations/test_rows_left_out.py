"""Rows that are not as they should be: left out and counted, or refused with what to do."""

import pytest
import torch

from dictionary_learning import load_model
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.activations._storage import RowStorage, as_dtype
from dictionary_learning.activations.cache import ActivationCache, write_cache
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.data import ExampleStream
from dictionary_learning.errors import ConfigError, DataError
from tests import tiny
from tests.activations.cache_files import DOCUMENTS, SIZES, buffer, write


class Faulty(torch.nn.Module):
    """Rows of (id, position, 1), damaged by a function that knows the number of the forward pass."""

    def __init__(self, damage):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.site, self.damage, self.n = torch.nn.Identity(), damage, 0

    def forward(self, input_ids, attention_mask=None):
        position = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        rows = torch.stack([input_ids, position, torch.ones_like(input_ids)], -1).float()
        self.n += 1
        self.damage(rows, self.n)
        return self.site(rows)


def once(value):
    """Damages one row of the second pass, which is the first after the one that finds the widths."""

    def damage(rows, n):
        if n == 2:
            rows[0, 5, 0] = value

    return damage


def faulty(damage):
    return load_model(Faulty(damage), tokenizer=tiny.tokenizer())


def always(rows, n):
    rows.fill_(torch.nan)


BAD = pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
LIMITS = pytest.mark.parametrize("multiple", [10.0, None])


class TestNotFinite:
    @BAD
    @LIMITS
    @pytest.mark.parametrize("end_of_data", ["stop", "repeat", "error"])
    def test_one_bad_token_in_the_first_pass_costs_itself(self, value, multiple, end_of_data):
        options = {**SIZES, "max_activation_norm_multiple": multiple, "end_of_data": end_of_data}
        clean, damaged = (
            ActivationBuffer(DOCUMENTS, faulty(damage), "site", **options)
            for damage in (lambda rows, n: None, once(value))
        )
        rows = [torch.cat([next(b) for _ in range(20)]) for b in (clean, damaged)]
        assert all(len(x) == 400 and x.isfinite().all() for x in rows)
        assert damaged.reader.dropped["not finite"] == 1
        # the median of one row less
        assert damaged.norm_limits == (pytest.approx(clean.norm_limits, rel=0.1) if multiple else None)

    @BAD
    @LIMITS
    def test_a_cache_leaves_it_out_too(self, tmp_path, value, multiple):
        index = write_cache(
            tmp_path, DOCUMENTS, faulty(once(value)), "site", ctx_len=16, max_activation_norm_multiple=multiple
        )
        assert index.dropped["not finite"] == 1
        rows = torch.cat(list(ActivationCache(tmp_path)))
        assert rows.isfinite().all()
        assert len(rows) == index.dropped["read"] - sum(n for name, n in index.dropped.items() if name != "read")

    @LIMITS
    @pytest.mark.parametrize("end_of_data", ["stop", "repeat", "error"])
    def test_nothing_finite_is_an_error(self, tmp_path, multiple, end_of_data):
        options = {"ctx_len": 16, "max_activation_norm_multiple": multiple}
        with pytest.raises(DataError, match="finite.*float16"):
            next(ActivationBuffer(DOCUMENTS, faulty(always), "site", **{**SIZES, **options}, end_of_data=end_of_data))
        with pytest.raises(DataError, match="finite.*float16"):
            write_cache(tmp_path, DOCUMENTS, faulty(always), "site", **options)

    def test_a_whole_pass_in_the_middle_is_left_out(self):
        def damage(rows, n):
            if n == 4:
                rows.fill_(torch.nan)

        held = ActivationBuffer(DOCUMENTS, faulty(damage), "site", **SIZES)
        assert torch.cat(list(held)).isfinite().all()
        assert held.reader.dropped["not finite"] > 40


class TestFiltersThatLeaveNothing:
    @pytest.mark.parametrize(
        "options",
        [
            {"seqpos_slice": (5, 2)},
            {"seqpos_slice": (0,)},
            {"seqpos_slice": (-2, -5)},
            {"seqpos_slice": (16, 20)},
            {"seqpos_slice": (1,)},  # the first position alone, which remove_bos excludes
            {"max_activation_norm_multiple": 0},
            {"max_activation_norm_multiple": -1.0},
            {"max_activation_norm_multiple": float("nan")},
            {"max_activation_norm_multiple": float("inf")},
        ],
        ids=str,
    )
    def test_are_refused_before_anything_is_read(self, tmp_path, options):
        with pytest.raises(ConfigError, match=r"Widen it|above 0|widen seqpos_slice|finite"):
            buffer(**options)
        with pytest.raises(ConfigError, match=r"Widen it|above 0|widen seqpos_slice|finite"):
            write(tmp_path / "cache", **options)
        assert not (tmp_path / "cache").exists()

    @pytest.mark.parametrize("chosen", [(-1, 3), (2, 14), (None, -1), (3,), (1, 9, 2), (-4, None)])
    def test_others_are_not(self, chosen):
        assert TokenFilter(seqpos_slice=chosen).seqpos_slice == chosen

    @pytest.mark.parametrize("end_of_data", ["stop", "repeat", "error"])
    def test_text_without_a_token_that_counts_is_an_error(self, tmp_path, end_of_data):
        options = {"pack": False, "ctx_len": 16}
        with pytest.raises(DataError, match="no token that counts"):
            next(buffer(["w1"] * 5, end_of_data=end_of_data, **options))
        with pytest.raises(DataError, match="no token that counts"):
            write(tmp_path / "cache", documents=["w1"] * 5, **options)


class TestFloat16:
    def test_overflow_is_refused_wherever_rows_are_stored_or_served(self, tmp_path):
        def huge(rows, n):
            rows[..., 1] *= 1e5

        options = {"max_activation_norm_multiple": None, "ctx_len": 16}
        with pytest.raises(DataError, match=r"65,504.*bfloat16"):
            next(ActivationBuffer(DOCUMENTS, faulty(huge), "site", **{**SIZES, **options}, dtype="float16"))
        with pytest.raises(DataError, match="65,504"):
            write_cache(tmp_path / "refused", DOCUMENTS, faulty(huge), "site", dtype="float16", **options)
        for dtype in ("float32", "bfloat16", "int8"):
            write_cache(tmp_path / dtype, DOCUMENTS, faulty(huge), "site", dtype=dtype, **options)
            with pytest.raises(DataError, match="65,504"):
                next(ActivationCache(tmp_path / dtype, dtype="float16"))

    def test_what_fits_or_was_infinite_before_is_not(self):
        x = torch.tensor([[65504.0, -65504.0, torch.inf]])
        assert torch.equal(as_dtype(x, torch.float16).float(), x)
        storage = RowStorage(1, 3, torch.float16)
        storage.write(torch.tensor([0]), x)
        assert torch.equal(storage.read(torch.tensor([0])).float(), x)


class Patches(torch.nn.Module):
    """A "vision model": a row for each pixel of an image."""

    def __init__(self):
        super().__init__()
        self.site = torch.nn.Linear(1, 3)

    def forward(self, pixel_values):
        return self.site(pixel_values.flatten(1).unsqueeze(-1))


class TestExamples:
    def stream(self, sizes, **options):
        images = [torch.rand(size, size) for size in sizes]
        return ExampleStream(images, lambda some: {"pixel_values": torch.stack(some)}, **options)

    def model(self):
        return load_model(Patches(), example={"pixel_values": torch.zeros(1, 3, 3)})

    @pytest.mark.parametrize("options", [{}, {"ctx_len": 8}])
    def test_too_short_a_context_is_refused_with_the_right_length(self, tmp_path, options):
        with pytest.raises(DataError, match=r"Set ctx_len=9"):
            next(ActivationBuffer(self.stream([3] * 64, **options), self.model(), "site", n_ctxs=64, out_batch_size=8))
        with pytest.raises(DataError, match=r"Set ctx_len=9"):
            write_cache(tmp_path, self.stream([3] * 64, **options), self.model(), "site")

    def test_images_of_several_sizes_are_refused(self):
        stream = self.stream([3, 3, 4, 4], ctx_len=9)
        held = ActivationBuffer(
            stream, self.model(), "site", n_ctxs=4, out_batch_size=8, refresh_batch_size=2,
        )  # fmt: skip
        with pytest.raises(DataError, match="16 positions .* all images one size"):
            list(held)
