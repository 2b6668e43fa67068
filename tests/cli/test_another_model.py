"""`evaluate` says so when a dictionary is used with another model than it was trained on."""

import json

from dictionary_learning import AutoEncoder, save_dictionary
from dictionary_learning.cli import main
from tests import tiny


def test_dictionary_of_another_model_is_warned_of(tmp_path, caplog):
    tiny.save_model(tmp_path / "model", "gpt2")
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in tiny.documents(10)))
    told = []
    for name in ("other/model", str(tmp_path / "model")):
        buffer = {"model": {"name": name, "revision": None, "dtype": "float32"}, "ctx_len": 16}
        save_dictionary(AutoEncoder(tiny.DIM, 32), tmp_path / "d", {"site": "transformer.h.1:out", "buffer": buffer})
        caplog.clear()
        assert (
            main(
                [
                    "evaluate", str(tmp_path / "d"), "--model", str(tmp_path / "model"), "--data", str(tmp_path / "text.jsonl"),
                    "--n-tokens", "64", "--n-fidelity-tokens", "0", "--device", "cpu", "--dtype", "float32",
                ]
            )
            == 0
        )  # fmt: skip
        told.append("What was trained on 'other/model' is used with" in caplog.text)
    assert told == [True, False]
