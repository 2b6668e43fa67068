"""`dictionary-learning export`: files of other tools about latents, and sets of dictionaries."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dictionary_learning._run_folder import resolve_latest
from dictionary_learning._shell_words import place, shown_command
from dictionary_learning.cli._explain import only_name, read_latents
from dictionary_learning.cli._model_options import ModelArguments
from dictionary_learning.cli._output import write_result
from dictionary_learning.cli._parser import option_of
from dictionary_learning.config import setting
from dictionary_learning.errors import ConfigError

if TYPE_CHECKING:
    from dictionary_learning.exports import LatentFacts

_NEIGHBORS = 10
_OF_CONTEXTS = ("neuronpedia", "neuronpedia-upload", "saedashboard", "png")
_OF_WEIGHTS = {
    "circuit-tracer": "the run of transcoders of all layers",
    "attribution-graph": "the run of transcoders of all layers",
    "control-vector": "the folder of one dictionary",
}
"""What other tools' files are made of: contexts, or the weights of dictionaries."""
_STRENGTH = re.compile(r"([0-9]{1,9}):(-?[0-9]+(?:\.[0-9]+)?)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportArguments(ModelArguments):
    """Writes what is known of latents, or dictionaries, for other tools.

    Contexts (of collect_contexts) become neuronpedia, saedashboard or png; neuronpedia-upload sends
    them. A run of transcoders of all layers becomes circuit-tracer, or with a prompt an
    attribution-graph; a dictionary becomes control-vector.
    Prints the path of what it writes. For the formats of one dictionary's weights see convert.
    """

    positional: ClassVar = ("source", "destination")
    aliases: ClassVar = {"scan": "model_id"}
    source: str
    """A folder of contexts; for circuit-tracer and attribution-graph a run, for control-vector a
    dictionary."""
    destination: str
    """The folder to write; for control-vector too, which gets control_vector.gguf. An upload keeps
    there what was sent."""
    to: Literal[
        "neuronpedia",
        "neuronpedia-upload",
        "saedashboard",
        "png",
        "circuit-tracer",
        "attribution-graph",
        "control-vector",
    ]
    """What is written."""
    dictionary: str | None = None
    """The name of the dictionary in the contexts; by default the only one."""
    weights: str | None = None
    """The dictionary of the contexts: its directions, and the latents that are nearest, are written
    too."""
    model: str | None = None
    """The language model: which tokens each latent promotes is written too; needs --weights. For
    attribution-graph the model that the prompt is given to, which is loaded in float32 unless
    --dtype says otherwise: sums over a graph need it."""
    latents: tuple[str, ...] = ("all",)
    """Numbers and ranges, as 5 10-19, or all."""
    strengths: tuple[str, ...] = ()
    """For control-vector, latents with a strength each, as 5:10 17:-2.5."""
    layer: int | None = setting(None, at_least=0)
    """The number of the layer; by default what the site says."""
    model_id: str | None = None
    """The model's id at Neuronpedia, as gpt2-small, for attribution-graph too (where circuit-tracer
    has the transcoders' repository, as scan); its name for circuit-tracer; and for control-vector
    its architecture in llama.cpp, by default llama."""
    source_set: str | None = None
    """The name of the set of dictionaries at Neuronpedia, as res-mine."""
    url: str = "https://www.neuronpedia.org"
    """Where an upload goes; the key is that of $NEURONPEDIA_API_KEY."""
    repository: str | None = None
    """For circuit-tracer, the repository that the folder will be uploaded to, as user/name."""
    selection: Literal["threshold", "top_k"] = "threshold"
    """For circuit-tracer, how TopK selects: by its learned threshold, or as the k largest."""
    hook_name: str | None = None
    """For circuit-tracer, the hook that is read, as mlp.hook_in; by default what the sites say."""
    hook_name_out: str | None = None
    """The same of the hook that is written, as mlp.hook_out."""
    prompt: tuple[str, ...] = ()
    """For attribution-graph, the text whose next token is explained; several have a graph each."""
    slug: tuple[str, ...] = ()
    """For attribution-graph, the name of the graph and of its file, one for each prompt; by default
    graph, or graph-1, graph-2 and so on."""
    max_latents: int = setting(7500, at_least=1)
    """For attribution-graph, the most latents of which effects are computed: a backward pass for
    every 32."""
    node_threshold: float = setting(0.8, at_least=0, at_most=1)
    """For attribution-graph, the share of the influence on the prediction that is kept."""
    edge_threshold: float = setting(0.98, at_least=0, at_most=1)
    """The same of edges."""

    def run(self) -> None:
        writers: dict[str, Callable[[], Path | list[Path]]] = {
            "neuronpedia": self._neuronpedia,
            "neuronpedia-upload": self._upload,
            "saedashboard": self._sae_dashboard,
            "png": self._pictures,
            "circuit-tracer": self._circuit_tracer,
            "attribution-graph": self._attribution_graph,
            "control-vector": self._control_vector,
        }
        self._check_source()
        self._check_model_options()
        made = writers[self.to]()
        write_result([str(path) for path in made] if isinstance(made, list) else str(made))

    def _check_source(self) -> None:
        """Raises ConfigError if what is written is not made of what is given."""
        from dictionary_learning.interop._saved import own_folders

        source = Path(resolve_latest(self.source))
        is_store = (source / "contexts.safetensors").is_file()
        if is_store and self.to in _OF_WEIGHTS:
            raise ConfigError(
                f"Got --to {self.to} with '{self.source}', which holds contexts. It is written from weights: give "
                f"{_OF_WEIGHTS[self.to]}. Contexts are written as {', '.join(_OF_CONTEXTS)}."
            )
        if self.to in _OF_CONTEXTS and not is_store and own_folders(str(source)):
            collect = shown_command(["contexts", place(self.source), "--save-dir", "store"])
            raise ConfigError(
                f"Got --to {self.to} with '{self.source}', which holds dictionaries. It is written from contexts of "
                f"their latents: collect them with '{collect}', and give that folder. Dictionaries are written as "
                f"{', '.join(_OF_WEIGHTS)}."
            )

    def _check_model_options(self) -> None:
        """Raises ConfigError if it is said how a model is loaded, and none is."""
        takes_one = self.to not in ("circuit-tracer", "control-vector")
        if takes_one and (self.model is not None or self.to == "attribution-graph"):
            return
        fields = dataclasses.fields(ModelArguments)
        given = next((field.name for field in fields if getattr(self, field.name) != field.default), None)
        if given is not None:
            advice = "Give --model too, or leave it out." if takes_one else "Leave it out."
            raise ConfigError(f"Got {option_of(given)} with --to {self.to}, which loads no language model. {advice}")

    def _neuronpedia(self) -> Path:
        from dictionary_learning.exports import write_neuronpedia

        facts, latents = self._facts()
        return write_neuronpedia(facts, self.destination, latents=latents, **self._place(facts))

    def _upload(self) -> Path:
        from dictionary_learning.exports import upload_to_neuronpedia

        facts, latents = self._facts()
        upload_to_neuronpedia(facts, url=self.url, folder=self.destination, latents=latents, **self._place(facts))
        return Path(self.destination) / "uploaded.jsonl"

    def _sae_dashboard(self) -> Path:
        from dictionary_learning.exports import write_sae_dashboard

        facts, latents = self._facts()
        named = {"model_id": self.model_id, "layer": self._layer(facts) or 0, "source_set": self.source_set}
        return write_sae_dashboard(facts, self.destination, latents=latents, **named)

    def _pictures(self) -> Path:
        from dictionary_learning.exports import write_latent_picture

        facts, latents = self._facts()
        for latent in latents:
            write_latent_picture(facts, latent, Path(self.destination) / f"latent_{latent}.png")
        return Path(self.destination)

    def _circuit_tracer(self) -> Path:
        from dictionary_learning.cli._candidates import load_saved
        from dictionary_learning.exports import write_circuit_tracer

        return write_circuit_tracer(
            [one.dictionary for one in load_saved([self.source])],
            self.destination,
            model_name=self.model_id,
            feature_input_hook=self.hook_name,
            feature_output_hook=self.hook_name_out,
            **self.options("repository", "selection"),
        )

    def _attribution_graph(self) -> Path | list[Path]:
        from dictionary_learning.attribution import attribution_graph
        from dictionary_learning.cli._candidates import load_saved
        from dictionary_learning.exports import write_attribution_graph
        from dictionary_learning.exports._attribution_graph import check_place

        named = self.options("model_id", "source_set")
        slugs = self._slugs()
        for slug in slugs:
            check_place(self.destination, slug, **named)  # before what takes long
        transcoders = [one.dictionary for one in load_saved([self.source])]
        model = self.model or next((one.info.model for one in transcoders if one.info.model), None)
        if not self.prompt or model is None:
            lacking = "--model" if self.prompt else "--prompt"
            raise ConfigError(f"An attribution graph is of a prompt that a model is given. Give {lacking}.")
        loaded = dataclasses.replace(self, dtype=self.dtype or "float32").load(model)
        named |= self.options("node_threshold", "edge_threshold")
        paths: list[Path] = []
        for prompt, slug in zip(self.prompt, slugs, strict=True):
            graph = attribution_graph(loaded, transcoders, prompt, max_latents=self.max_latents)
            paths.append(write_attribution_graph(graph, self.destination, slug=slug, **named))
        return paths if len(paths) > 1 else paths[0]

    def _slugs(self) -> tuple[str, ...]:
        """Returns the name of each prompt's graph.

        Raises:
            ConfigError: There are more names than prompts, or fewer, or one is given twice.
        """
        n = max(len(self.prompt), 1)
        if not self.slug:
            return tuple(f"graph-{i + 1}" for i in range(n)) if n > 1 else ("graph",)
        if len(self.slug) != n or len(set(self.slug)) != n:
            raise ConfigError(f"Got --slug {' '.join(self.slug)} for {n} of --prompt; give a name of its own for each.")
        return self.slug

    def _control_vector(self) -> Path:
        from dictionary_learning.dictionaries import load_dictionary
        from dictionary_learning.exports import control_direction, write_control_vector

        strengths = _read_strengths(self.strengths)
        found = control_direction(load_dictionary(self.source), strengths, layer=self.layer)
        path = Path(self.destination) / "control_vector.gguf"
        return write_control_vector({found.layer: found.vector}, path, model_hint=self.model_id or "llama")

    def _facts(self) -> "tuple[LatentFacts, list[int]]":
        """Returns what the contexts hold of the dictionary, and the latents that are asked for."""
        from dictionary_learning.dictionaries import Coder, load_dictionary
        from dictionary_learning.exports import LatentFacts
        from dictionary_learning.interpretation import ContextStore, logit_lens, nearest_latents
        from dictionary_learning.interpretation.explanations import load_explanations
        from dictionary_learning.interpretation.explanations._files import EXPLANATIONS

        store = ContextStore.open(self.source)
        contexts = store[only_name(self.dictionary, store.names)]
        more: dict[str, Any] = {}
        explained = Path(self.source) / contexts.facts["folder"] / EXPLANATIONS
        if explained.is_file():
            more["explanations"] = load_explanations(explained)
        if self.weights is not None:
            dictionary = load_dictionary(self.weights)
            more["neighbors"] = nearest_latents(dictionary, min(_NEIGHBORS, dictionary.dict_size - 1))
            if isinstance(dictionary, Coder):  # others have several decoders
                more["directions"] = dictionary.W_dec.detach()
            if self.model is not None:
                more["effects"] = logit_lens(self.load(self.model), dictionary)
        elif self.model is not None:
            raise ConfigError("Got --model without --weights: tokens are promoted by directions. Give both.")
        return LatentFacts.of_store(contexts, **more), read_latents(self.latents, contexts.dict_size)

    def _place(self, facts: "LatentFacts") -> dict[str, Any]:
        """Returns where latents stand at Neuronpedia."""
        layer = self._layer(facts)
        given = {"--model-id": self.model_id, "--layer": layer, "--source-set": self.source_set}
        missing = [name for name, value in given.items() if value is None]
        if missing:
            example = {"--model-id": "gpt2-small", "--layer": "6", "--source-set": "res-mine"}
            words = " ".join(f"{name} {example[name]}" for name in missing)
            raise ConfigError(
                f"Neuronpedia has a place for each latent: the model, the layer, and a name for the set. Give "
                f"{' and '.join(missing)}, as {words}."
            )
        return {"model_id": self.model_id, "layer": layer, "source_set": self.source_set}

    def _layer(self, facts: "LatentFacts") -> int | None:
        """Returns the number of the layer: what is given, or the first number in the site."""
        found = re.search(r"\d+", facts.site)
        return self.layer if self.layer is not None or found is None else int(found[0])


def _read_strengths(words: tuple[str, ...]) -> dict[int, float]:
    """Returns the strength of each latent.

    Raises:
        ConfigError: There is none, or a word has another form.
    """
    matches = [_STRENGTH.fullmatch(word) for word in words]
    if not words or None in matches:
        wrong = next((word for word, match in zip(words, matches, strict=True) if match is None), "nothing")
        raise ConfigError(f"Got --strengths {wrong}; give latents with a strength each, as 5:10 17:-2.5.")
    return {int(match[1]): float(match[2]) for match in matches if match is not None}
