"""What a report draws and shades says no more than its error bars."""

import re
from xml.etree import ElementTree

import pytest

from dictionary_learning.evaluation.reports._contents import best_values
from dictionary_learning.evaluation.reports._plots import scatter_plot
from dictionary_learning.evaluation.reports._svg import looks


def entry(name: str, l0: float, fvu: float, wide: float = 0.0, high: float = 0.0) -> dict:
    errors = {"l0": {"standard_error": wide}, "fvu": {"standard_error": high}}
    return {"name": name, "site": "a", "metrics": {"l0": l0, "fvu": fvu}, "errors": errors}


CASES = {
    "one L0": [entry("first", 32.0, 0.2), entry("second", 31.99, 0.3)],
    "exactly one": [entry("first", 32.0, 0.2), entry("second", 32.0, 0.3)],
    "error bars": [entry("first", 45, 0.211, 3, 0.02), entry("second", 48, 0.22, 4, 0.02), entry("third", 52, 0.19, 2, 0.01)],
    "a wide range": [entry("first", 8, 0.3, 1, 0.01), entry("second", 256, 0.1, 9, 0.01)],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_axis_has_several_ticks_and_no_name_lies_on_a_bar(case):
    dictionaries = CASES[case]
    root = ElementTree.fromstring(scatter_plot(dictionaries, looks(dictionaries)))
    texts = [(text.text, *place(text)) for text in root.iter("text")]
    assert sum(text.isdecimal() for text, _, _ in texts) >= 2, "an axis with one tick has no scale"
    names = [(x, y, 6.0 * len(name)) for name, x, y in texts if name in ("first", "second", "third")]
    assert len(names) == len(dictionaries)
    for x, y, width in names:
        for line in bars(root):
            low, high = (
                (min(column) for column in zip(*line, strict=True)),
                (max(column) for column in zip(*line, strict=True)),
            )
            (left, top), (right, bottom) = low, high
            assert right < x or left > x + width or bottom < y - 8 or top > y, (case, line, (x, y))


def place(text: ElementTree.Element) -> tuple[float, float]:
    """Returns where a text begins."""
    x, y = (float(text.get(axis, "nan")) for axis in "xy")
    if x != x:
        x, y = map(float, re.findall(r"-?[\d.]+", text.get("transform", ""))[:2])
    anchor = text.get("style", "")
    return x - {"middle": 3.0, "end": 6.0}.get(next(iter(re.findall(r"text-anchor: (\w+)", anchor)), ""), 0) * len(
        text.text
    ), y


def bars(root: ElementTree.Element) -> list[list[tuple[float, float]]]:
    paths = [p.get("d", "") for g in root.iter("g") if g.get("class") == "series" for p in g.iter("path")]
    lines = [[(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", d)] for d in paths]
    return [line for line in lines if len(line) == 2]


def test_all_within_the_error_of_the_best_are_best():
    clear = [entry("a", 32, 0.2, 0, 0.01), entry("b", 32, 0.21, 0, 0.01), entry("c", 32, 0.3, 0, 0.01)]
    assert {i for i, key in best_values(clear) if key == "fvu"} == {0, 1}
    assert not [key for _, key in best_values(clear[:2]) if key == "fvu"]  # no difference is real
    exact = [entry("a", 32, 0.2), entry("b", 32, 0.21)]
    assert {i for i, key in best_values(exact) if key == "fvu"} == {0}
