"""Results print in a line: no walls of numbers."""

import importlib
import inspect

import pytest
import torch

from dictionary_learning import load_model
from dictionary_learning.attribution import attribute, attribution_graph, circuit, edges, logit_difference, prune
from dictionary_learning.data import TokenBatch
from dictionary_learning.dictionaries import AutoEncoderTopK, DictionaryInfo
from dictionary_learning.interventions import generate, latent_edits_for, read_latents
from dictionary_learning.latents import entries_of, to_dense
from tests import tiny
from tests.attribution.cases import placed
from tests.attribution.graph_cases import transcoders
from tests.exports.planted_facts import facts

PACKAGES = (
    "attribution", "interventions", "interpretation", "latents", "dictionaries", "exports", "evaluation", "data",
    "contexts", "activations", "synthetic", "sweeps",
)  # fmt: skip
NOT_PRINTED = ("InitConfig", "KnownBatch", "Rows")
"""What is passed on inside of the package, and not returned to look at."""
TEXT = "w1 w2 w3 w4"


def of_tensors():
    """Yields the named tuples with tensors among what packages list."""
    for package in PACKAGES:
        module = importlib.import_module(f"dictionary_learning.{package}")
        for name in getattr(module, "__all__", vars(module)):
            found = getattr(module, name)
            own = inspect.isclass(found) and issubclass(found, tuple) and hasattr(found, "_fields")
            hints = str(getattr(found, "__annotations__", {}))
            if (
                own
                and found.__module__.startswith("dictionary_learning")
                and ("Tensor" in hints or "jaxtyping" in hints)
            ):
                yield found


@pytest.mark.parametrize("kind", sorted(set(of_tensors()), key=str), ids=lambda kind: kind.__name__)
def test_results_with_tensors_print_in_short(kind):
    assert kind.__name__ in NOT_PRINTED or kind.__repr__.__module__ != "collections"


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model().eval(), tokenizer=tiny.tokenizer())


def results(model):
    torch.manual_seed(0)
    dictionary = AutoEncoderTopK(tiny.DIM, 60, 6)
    dictionary.info = DictionaryInfo(sites=("model.layers.1",))
    two = [placed(lambda: AutoEncoderTopK(16, 48, 6), f"layers.{n}", seed=n) for n in range(2)]
    reading = read_latents(model, dictionary, [TEXT, "w9 w8 w7 w6"])
    found = attribute(model, two, TEXT, logit_difference(5, 9), method="gradient")
    first, later = found.effects
    graph = attribution_graph(model, transcoders(), TEXT)
    yield from (reading, reading.latents, TokenBatch(reading.input_ids, reading.mask))
    yield from (found, found.effects[first], circuit(found, n_nodes=5), edges(model, two, found, first, later, [0, 1]))
    yield from (graph, prune(graph), generate(model, TEXT, max_new_tokens=9))
    yield latent_edits_for(model, dictionary, TEXT, ablate=[3])
    yield from (facts().statistics, facts().effects, facts().neighbors, facts().contexts.contexts(3))


def test_results_are_short(model):
    for one in results(model):
        shown = repr(one)
        assert shown.startswith(f"{type(one).__name__}(") and shown.endswith(")"), shown
        assert len(shown) < 1500 and "tensor(" not in shown and "\n" not in shown, shown


def test_a_reading_says_how_much_was_read_and_its_largest_latents(model):
    reading = next(iter(results(model)))
    dense = reading.dense()
    row, position, latent = (int(one) for one in torch.unravel_index(dense.abs().argmax(), dense.shape))
    assert "2 texts, 8 tokens read; largest of 60 latents" in repr(reading)
    assert f": {latent} at ({row}, {position}): {float(dense[row, position, latent]):+.3g}, " in repr(reading)


def test_a_graph_says_what_it_has_and_predicts(model):
    graph = attribution_graph(model, transcoders(), TEXT)
    assert f"{len(graph.latent)} of {graph.n_active} active latents in 3 layers, {graph.n_nodes:,} nodes" in repr(graph)
    assert f"{graph.logit_tokens[0]!r} {float(graph.probability[0]):.3f}" in repr(graph)


def test_entries_are_those_of_the_dense_latents(model):
    latents = next(iter(results(model))).latents
    for given in (latents, to_dense(latents)):
        values, tokens, numbers = entries_of(given)
        assert torch.equal(torch.zeros(8, 60).index_put((tokens, numbers), values), to_dense(latents))
