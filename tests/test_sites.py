import pytest

from dictionary_learning.errors import SiteError
from dictionary_learning.sites import Site, SiteDict, expand, natural_key

PATHS = ["", "transformer", "transformer.h"] + [
    f"transformer.h.{i}{part}" for i in (0, 1, 10, 2) for part in ("", ".attn", ".mlp", ".mlp.act")
]


def test_parse_reads_path_and_side():
    assert Site.parse("a.b:in") == Site("a.b", "in")
    assert Site.parse("a.b") == Site("a.b", "out")
    assert Site.parse("a.b", "in") == Site("a.b", "in")
    assert Site.parse(str(Site("a.b", "in"))) == Site("a.b", "in")


def test_parse_refuses_another_side():
    with pytest.raises(SiteError, match="a site ends in ':in', ':out' or ':heads'"):
        Site.parse("a.b:output")


def test_wildcards_expand_in_natural_order():
    found = [site.path for site in expand("transformer.h.*.attn", PATHS)]
    assert found == [f"transformer.h.{i}.attn" for i in (0, 1, 2, 10)]


def test_wildcard_stays_within_its_part():
    assert [s.path for s in expand("transformer.h.*", PATHS)] == [f"transformer.h.{i}" for i in (0, 1, 2, 10)]
    assert Site("transformer.h.2.mlp.act") in expand("**.act", PATHS)


def test_prefix_of_the_base_model_may_be_left_out():
    assert expand("h.[0-1].mlp:in", PATHS) == [Site("transformer.h.0.mlp", "in"), Site("transformer.h.1.mlp", "in")]


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        ("[8-12]", [8, 9, 10, 11, 12]),
        ("[10-15]", [10, 11, 12, 13, 14, 15]),
        ("[0-1]", [0, 1]),
        ("[0,3,10-12]", [0, 3, 10, 11, 12]),
        ("[1-2][0-9]", list(range(10, 20))),
        ("1[0-2]", [10, 11, 12]),
        ("[12]", [1, 2]),
        ("[!0-8]", [9]),
        ("?", list(range(10))),
    ],
)
def test_numbers_in_brackets_are_numbers(numbers, found):
    """As characters, "[10-15]" would be 1, 0 to 1, and 5: other layers, without an error."""
    paths = [f"layers.{n}" for n in range(20)]
    assert expand(f"layers.{numbers}", paths) == [Site(f"layers.{n}") for n in found]


def test_a_range_of_numbers_that_is_empty_finds_nothing():
    with pytest.raises(SiteError, match="is not in"):
        expand("layers.[5-2]", [f"layers.{n}" for n in range(20)])


def test_several_patterns_give_each_site_once():
    assert expand(["h.1", "transformer.h.[1-2]"], PATHS) == [Site("transformer.h.1"), Site("transformer.h.2")]


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("transformer.h.99", "4 entries: 0, 1, 2, 10. Choose"),
        ("transformer.h.1.mpl", "Did you mean 'transformer.h.1.mlp'"),
        ("h.1.atn", "Did you mean 'h.1.attn'"),
        ("nothing.like.it", "Its modules begin with"),
    ],
)
def test_error_says_what_is_there(asked, hint):
    with pytest.raises(SiteError, match="is not in GPT2") as raised:
        expand(asked, PATHS, model="GPT2")
    assert hint in str(raised.value)


def test_natural_key_orders_numbers_by_value():
    assert sorted(["l.10.a", "l.9.b", "l.9.a", "k"], key=natural_key) == ["k", "l.9.a", "l.9.b", "l.10.a"]


@pytest.mark.parametrize(
    "site", [Site("a.b"), Site("a.b", "in"), Site("a.b", "out", 1), Site("a.b", "in", 12), Site("a", "heads"), Site("")]
)
def test_site_is_read_as_it_was_written(site):
    assert Site.parse(str(site)) == site


def test_first_of_several_is_written_as_ever():
    assert str(Site("a.b")) == "a.b:out" == str(Site.parse("a.b:out[0]"))
    assert str(Site("a.b", "in", 2)) == "a.b:in[2]"


@pytest.mark.parametrize("text", ["a:out[", "a:out[-1]", "a:heads[1]", "a:out[x]", "a:"])
def test_parse_refuses_another_position(text):
    with pytest.raises(SiteError, match="a site ends in"):
        Site.parse(text)


def test_position_in_a_tuple_goes_with_each_match_of_a_pattern():
    assert expand("h.[0-1].attn:out[1]", PATHS) == [Site(f"transformer.h.{n}.attn", "out", 1) for n in (0, 1)]


WRITES = {
    "set": lambda d, key: d.__setitem__(key, 7),
    "update": lambda d, key: d.update({key: 7}),
    "|=": lambda d, key: d.__ior__({key: 7}),
    "delete": lambda d, key: d.__delitem__(key),
    "pop": lambda d, key: d.pop(key),
}


@pytest.mark.parametrize("key", ["model.layers.1", "layers.1", "model.layers.1:out", Site("model.layers.1")])
@pytest.mark.parametrize("write", WRITES)
def test_every_name_of_a_site_that_reads_it_writes_it(write, key):
    values = SiteDict({"model.layers.1": 1, "model.layers.1:in": 2})
    WRITES[write](values, key)
    here = {Site("model.layers.1"): 7} if write in ("set", "update", "|=") else {}
    assert dict(values) == {**here, Site("model.layers.1", "in"): 2}


def test_site_dict_keeps_its_kind_and_its_errors():
    values = SiteDict({"model.layers.1": 1})
    assert values.setdefault("layers.1", 5) == 1
    assert values.pop("layers.2", None) is None
    assert (values | {"layers.1": 3})["model.layers.1"] == 3
    assert values.copy()["layers.1"] == 1
    for wrong in (lambda: values.pop("layers.2"), lambda: values.__delitem__("layers.2")):
        with pytest.raises(KeyError, match="'layers.2' is not among the sites model.layers.1:out"):
            wrong()
