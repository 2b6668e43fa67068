"""The list of public releases, and what is found in it."""

import json
import re

import pytest
import torch

from dictionary_learning import list_pretrained
from dictionary_learning.cli import main
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop import FORMATS
from dictionary_learning.interop._files import check_relative
from dictionary_learning.interop._releases import Release, _expanded
from tests.interop import golden


def test_every_release_says_what_is_needed():
    names = [release.name for release in list_pretrained()]
    assert len(names) > 100 and len(set(names)) == len(names)
    for release in list_pretrained():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", release.repo) and release.model and release.format in FORMATS
        assert release.sites and len(set(release.sites)) == len(release.sites)
        assert all(check_relative(site, "it") for site in release.sites if site)
        assert not release.ids or len(release.site_of_id) == len(release.sites)  # one each
        assert set(release.scales) <= set(release.sites)


def test_the_list_says_where_it_is_from():
    from dictionary_learning.interop._releases import _FILE

    assert all(isinstance(source, str) for source in json.loads(_FILE.read_text())["sources"])


def test_search_by_model_site_and_name():
    assert {release.model for release in list_pretrained(model="GPT2")} == {"gpt2-small"}
    names = {release.name for release in list_pretrained(model="gemma-2-2b", site="layer_12")}
    assert {"gemma-scope-2b-pt-res", "sae_bench_gemma-2-2b_topk_width-2pow12_date-1109"} <= names
    assert "gemma-2-2b-res-matryoshka-dc" not in names
    assert list_pretrained(name="gpt2-small-res-jb")[0].name == "gpt2-small-res-jb"
    assert list_pretrained(model="no such model") == []


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a", ["a"]),
        ("l{0-2}", ["l0", "l1", "l2"]),
        ("l{0-1,5}/w{16,65}k", ["l0/w16k", "l0/w65k", "l1/w16k", "l1/w65k", "l5/w16k", "l5/w65k"]),
        ("l{9-10}_*", ["l9_*", "l10_*"]),
    ],
)
def test_patterns_stand_for_paths(pattern, paths):
    assert _expanded(pattern) == paths


def test_a_release_is_loaded_with_its_facts():
    release = Release(
        "test", str(golden.FIXTURES), "a model", "llama_scope_r1", ("third_party/llama_scope_r1",), {}, {"third_party/llama_scope_r1": 0.75}
    )  # fmt: skip
    dictionary = release.load()
    expected = golden.io("third_party/llama_scope_r1")
    golden.check_latents(dictionary.encode(expected["x"]), expected["latents"])
    assert dictionary.info.model == "a model"
    with pytest.raises(CheckpointError, match="has no site 'layer_3'"):
        release.load("layer_3")


def test_scales_of_llama_scope_r1_are_there():
    (release,) = [release for release in list_pretrained() if release.format == "llama_scope_r1"]
    assert set(release.scales) == set(release.sites)
    assert all(torch.tensor(scale) > 0 for scale in release.scales.values())


def test_command_lists_releases(capsys, caplog):
    caplog.set_level("INFO")
    assert main(["pretrained", "--model", "gpt2", "--site", "hook_resid_pre", "--sites"]) == 0
    shown = capsys.readouterr().out
    assert "jbloom/GPT2-Small-SAEs-Reformatted" in shown and "blocks.11.hook_resid_pre" in shown
    assert main(["pretrained", "nothing of that name"]) == 0
    assert "No known release fits" in caplog.text
