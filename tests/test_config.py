import dataclasses
from typing import Literal

import pytest

from dictionary_learning.config import BaseConfig, Registry, field_docs, setting
from dictionary_learning.errors import ConfigError, UnknownNameError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example(BaseConfig):
    k: int = 3
    """How many."""
    lr: float | None = None
    """How fast."""
    names: tuple[str, ...] = ()
    """Which."""
    mode: Literal["a", "b"] = "a"
    flag: bool = False


def test_lossless_changes_of_type_are_made():
    made = Example(k=3e4, lr=1, names=["x"])  # type: ignore[arg-type]
    assert (made.k, made.lr, made.names) == (30_000, 1.0, ("x",))
    assert isinstance(made.k, int)
    assert isinstance(made.lr, float)


@pytest.mark.parametrize("wrong", [{"k": 0.5}, {"k": "3"}, {"k": True}, {"lr": "fast"}, {"mode": "c"}, {"flag": 1}])
def test_wrong_type_is_refused_with_the_field(wrong):
    with pytest.raises(ConfigError, match=f"Example.{next(iter(wrong))} is"):
        Example(**wrong)


def test_unknown_name_is_refused_with_a_near_one():
    with pytest.raises(UnknownNameError, match="Did you mean 'names'"):
        Example.from_dict({"name": ()})


def test_default_without_an_annotation_is_a_default():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Other(Example):
        k = 7
        lr = setting(2.0, above=0)

    assert (Other().k, Other().lr, Other(k=2).k) == (7, 2.0, 2) and Example().k == 3
    assert field_docs(Other) == field_docs(Example)
    for wrong in ({"k": "a"}, {"lr": 0}):
        with pytest.raises(ConfigError):
            Other(**wrong)


def test_fields_without_the_decorator_are_refused():
    class Undecorated(Example):
        k = 7

    with pytest.raises(ConfigError, match="Undecorated has the fields k; decorate it"):
        Undecorated()


def test_dictionary_round_trips():
    made = Example(k=5, names=("a", "b"))
    assert Example.from_dict(made.to_dict()) == made


def test_field_docs_are_the_strings_under_the_fields():
    assert field_docs(Example) == {"k": "How many.", "lr": "How fast.", "names": "Which."}


def test_registry_names_and_finds():
    registry: Registry[object] = Registry("thing")
    entry = object()
    registry.register("one", "uno")(entry)
    assert registry["uno"] is entry
    assert registry.name_of(entry) == "one"
    assert registry.items() == [("one", entry)]
    with pytest.raises(UnknownNameError, match="Unknown thing 'onee'. Did you mean 'one'"):
        registry["onee"]
