"""A conversion says what the files of a format do not tell of a dictionary."""

import pytest

from dictionary_learning import load_dictionary, trainSAE
from dictionary_learning.interop import FORMATS, convert
from tests.tiny import Planted

FACTS = ("sites", "target_sites", "model")


@pytest.mark.parametrize("to", [name for name, one in FORMATS.items() if one.writes])
@pytest.mark.parametrize("model", ["gpt2", "./models/own", None])
def test_what_is_not_read_back_was_warned_of(to, model, tmp_path, caplog):
    (dictionary,) = trainSAE(
        list(Planted().batches(2, 64)), {"trainer": "top_k", "k": 3, "dict_size": 48}, 2, progress=False
    )
    config = {"site": "transformer.h.1:out", **({"model": model} if model else {})}
    from dictionary_learning.interop import write_dictionary

    write_dictionary(dictionary, tmp_path / "own", "own", config)
    caplog.clear()
    convert(
        tmp_path / "own", tmp_path / "there", to, hook_name="blocks.1.hook_resid_post" if to == "sae_lens" else None
    )
    before, after = load_dictionary(tmp_path / "own").info, load_dictionary(tmp_path / "there").info
    lost = {name for name in FACTS if getattr(before, name) and not getattr(after, name)}
    told = next((one.getMessage() for one in caplog.records if "do not tell" in one.getMessage()), "")
    assert ("its site" in told) == ("sites" in lost) and ("its model" in told) == ("model" in lost)
    assert to != "sparsify" or "its site (transformer.h.1:out)" in told
    assert to != "sae_lens" or ("its model (./models/own)" in told) == (model == "./models/own")
