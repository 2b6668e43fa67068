"""On a GPU: what trains, is saved, resumed and measured on a CPU does so there, with the same results.

`TEST_DEVICE=cuda pytest tests/test_cuda.py`; skipped without one.
"""

import pytest
import torch

from dictionary_learning import ActivationBuffer, load_dictionary, load_model, trainSAE, write_cache
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.evaluation import Candidate, EvaluationConfig, evaluate_dictionaries
from dictionary_learning.trainers import TRAINERS
from tests import tiny
from tests.contracts.test_trainers import EVENTFUL, OPTIONS, has
from tests.contracts.test_wirings import SITES, batches
from tests.test_resume import BUFFER, TWO, check_resumes, files
from tests.tiny import DEVICE, Planted

pytestmark = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: TEST_DEVICE=cuda")


def built(name: str, device: str):
    wanted = {**OPTIONS, **EVENTFUL, "dict_size": 512, "device": device}
    return TRAINERS[name](**{key: value for key, value in wanted.items() if key in has(name)})


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", list(TRAINERS))
def test_losses_are_those_of_the_cpu(name, autocast):
    here, there = built(name, "cpu"), built(name, DEVICE)
    there.dictionary.load_state_dict(here.dictionary.state_dict())
    for x in Planted().batches(8, 64):
        expected = here.update(here.step, x).item()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            got = there.update(there.step, x.to(DEVICE)).item()
        assert got == pytest.approx(expected, rel=2e-2 if here.step > 2 else 1e-3)


@pytest.mark.parametrize("wiring", list(SITES))
def test_every_wiring_trains_and_is_read_back(wiring, tmp_path):
    config = {"trainer": "batch_top_k", "k": 3, "dict_size": 96, "wiring": wiring}
    if wiring == "heads":
        config["n_heads"] = 2
    (trained,) = trainSAE(batches(wiring, 6, 64), config, 6, device=DEVICE, save_dir=tmp_path, progress=False)
    assert next(trained.parameters()).device.type == torch.device(DEVICE).type
    loaded = load_dictionary(tmp_path / "trainer_0", device=DEVICE)
    for (name, tensor), (_, same) in zip(trained.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(tensor, same), name


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model(), tokenizer=tiny.tokenizer(), device=DEVICE)


CONFIGS = [
    {"trainer": "top_k", "k": 3, "dict_size": 512, "normalize": "unit_mean_square"},
    {"trainer": "top_k", "k": 3, "dict_size": 512, "seed": 1, "normalize": "unit_mean_square"},
    {"trainer": "standard", "dict_size": 48, "grad_acc_steps": 3, "resample_steps": 4},
    {"trainer": "jump_relu", "dict_size": 48, "normalize": "layer_norm", "grad_acc_steps": 2},
    {"trainer": "batch_top_k", "k": 3, "wiring": "crosscoder", "dict_size": 48},
]


@pytest.mark.parametrize("options", [{}, {"prefetch": 2}, {"dtype": "int8", "pack": False}], ids=str)
def test_live_activations_resume(model, tmp_path, options):
    check_resumes(
        lambda: ActivationBuffer(tiny.documents(30), model, TWO, **BUFFER, **options),
        CONFIGS,
        tmp_path,
        stops=(2, 7),
        steps=15,
        device=DEVICE,
    )


def test_a_run_is_the_same_twice_and_is_evaluated(model, tmp_path):
    for folder in ("a", "b"):
        buffer = ActivationBuffer(tiny.documents(30), model, TWO, **BUFFER)
        trained = trainSAE(buffer, CONFIGS, 8, device=DEVICE, save_dir=tmp_path / folder, progress=False)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    candidates = [Candidate(f"d{n}", d, TWO[n % 2]) for n, d in enumerate(trained[:4])]
    config = EvaluationConfig(n_tokens=256, n_fidelity_tokens=256, ctx_len=16)
    reports = [
        evaluate_dictionaries(m, [c._replace(dictionary=c.dictionary.to(device)) for c in candidates], tiny.documents(20, seed=1), config)
        for device, m in ((DEVICE, model), ("cpu", load_model(tiny.model(), tokenizer=tiny.tokenizer(), device="cpu")))
    ]  # fmt: skip
    here, there = ([dict(row["metrics"]) for row in report["dictionaries"]] for report in reports)
    for a, b in zip(here, there, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-3)


def test_a_cache_is_written_and_trained_on(model, tmp_path):
    write_cache(tmp_path / "cache", tiny.documents(40), model, TWO, ctx_len=16, refresh_batch_size=4)
    data = ActivationCache(tmp_path / "cache", out_batch_size=32, end_of_data="repeat")
    trained = trainSAE(data, CONFIGS, 8, device=DEVICE, progress=False)
    assert all(p.isfinite().all() for dictionary in trained for p in dictionary.parameters())


@pytest.mark.parametrize("name", ["end_to_end", "temporal"])
def test_methods_of_contexts_train(model, name, tmp_path):
    from dictionary_learning import ContextStream

    stream = ContextStream(tiny.documents(30), model, TWO[0], ctx_len=16, batch_size=4, end_of_data="repeat")
    config = {"trainer": name, "k": 3, "dict_size": 96}
    (trained,) = trainSAE(stream, config, 4, device=DEVICE, progress=False)
    assert all(p.isfinite().all() for p in trained.parameters())
