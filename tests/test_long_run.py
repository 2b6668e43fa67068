"""Many steps with logs, saves and evaluations: no growth. `benchmarks/long_run.py` makes 20,000."""

import gc
import os
import sys
import threading

import pytest
import torch

from dictionary_learning import load_dictionary, trainSAE
from dictionary_learning.evaluation import Candidate, EvaluationConfig, evaluate_dictionaries
from tests import tiny
from tests.activations.cache_files import DOCUMENTS, buffer, traced

SAMPLES = 10
SITE = "model.layers.0"


class Watch:
    """Evaluates what was saved, and notes what the process holds."""

    def __init__(self, model, folder, every):
        self.model, self.folder, self.every, self.found = model, folder, every, []

    def log(self, figures, step, tokens):
        if step % self.every:
            return
        if step > self.every:
            dictionary = load_dictionary(self.folder / "trainer_0" / "checkpoints" / "latest")
            settings = EvaluationConfig(n_tokens=64, n_fidelity_tokens=32, ctx_len=16, batch_size=2)
            evaluate_dictionaries(self.model, Candidate("latest", dictionary, f"{SITE}:out"), DOCUMENTS, settings)
        gc.collect()
        tensors = sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())
        files = len(os.listdir("/proc/self/fd"))
        self.found.append((tensors, files, threading.active_count(), sys.getallocatedblocks()))

    def close(self):
        pass


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="no /proc")
def test_a_long_run_does_not_grow(tmp_path, full):
    model, steps = traced(), 2000 if full else 400
    every = steps // SAMPLES
    watch = Watch(model, tmp_path, every)
    data = buffer(model=model, prefetch=1, end_of_data="repeat", out_batch_size=4)
    gc.collect()
    gc.freeze()  # what is there before the run is not looked through each time
    try:
        trainSAE(
            data, {"trainer": "top_k", "k": 3, "dict_size": 32}, steps, save_dir=tmp_path, device="cpu",
            log_steps=every // 4, backup_steps=every, loggers=[watch], progress=False,
        )  # fmt: skip
    finally:
        gc.unfreeze()
    data.close()
    assert len(watch.found) == SAMPLES
    half = SAMPLES // 2
    warm, late = (
        [max(values) for values in zip(*part, strict=True)] for part in (watch.found[2:half], watch.found[half:])
    )
    assert all(a <= b for a, b in zip(late[:3], warm[:3], strict=True)), (warm, late)
    # one for each step of a half of the 2,000; the log that is kept takes most of it
    assert late[3] < warm[3] + 1000, f"{late[3] - warm[3]} blocks of memory more"
    assert model.widths(SITE)[SITE] == tiny.DIM
