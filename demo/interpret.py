"""# One feature of SmolLM2

Takes one latent of a dictionary that `make demo` trained: finds it, names it, ablates it, and
steers a text with it. `python demo/interpret.py` prints the words; `demo/interpret.ipynb` is the
same with colored texts. `RUN=folder` in the environment takes another run.
"""

# %%
import os
from pathlib import Path

from dictionary_learning import load_session
from dictionary_learning.interpretation import (
    ContextStore,
    ablation_effects,
    collect_contexts,
    latent_view,
    logit_lens,
)
from dictionary_learning.interpretation.explanations import Baseline, explain
from dictionary_learning.interventions import generate, latent_edits

RUN = Path(os.environ.get("RUN", "runs/demo"))
if not RUN.exists():  # a notebook starts in its own folder
    os.chdir("..")

# %% [markdown]
# ## Load
# A session is the language model of a run, its dictionaries by name, the activations that they
# trained on, and the text that was held out.

# %%
session = load_session(RUN)
model, held_out = session.model, session.held_out
assert held_out is not None, "the run held no text out; give it --held-out-every"
name, dictionary = next(iter(session.dictionaries.items()))
print(f"{Path(model.name).name}: '{name}' has {dictionary.dict_size:,} latents at {dictionary.info.sites[0]}")

# %% [markdown]
# ## Find
# Where is each latent active, and which tokens does it promote? The demo has stored the first for
# its pages, and the logit lens tells the second. The rule: of the latents that are most active on
# at least two words which they also promote, take the one that can raise a logit most.

# %%
folder = RUN / "latents" / "contexts"
if folder.is_dir():
    store = ContextStore.open(folder)
else:
    store = collect_contexts(model, session.dictionaries, held_out, RUN / "contexts", n_tokens=20_000)
contexts = store[name]
lens = logit_lens(model, dictionary, n=20)


def words(ids):
    """Returns tokens as words in lower case."""
    return {text.strip().lower() for text in store.token_text(ids)} - {""}


def read_and_written(latent):
    """Returns the words on which a latent is most active and which it also promotes."""
    peaks = [int(example.token_ids[example.peak]) for example in contexts.contexts(latent).top]
    return words(peaks) & words(lens.promoted[latent])


maximum, density = contexts.statistics.maximum, contexts.statistics.density
raised = maximum * lens.promoted_logits[:, 0]
latent = max(range(dictionary.dict_size), key=lambda i: (min(len(read_and_written(i)), 2), float(raised[i])))
largest = float(maximum[latent])
print(f"Latent {latent} is active on {100 * density[latent]:.2f} % of tokens, at most {largest:.1f}.")
print("It reads and writes:", ", ".join(sorted(read_and_written(latent))))

# %% [markdown]
# Its strongest contexts, with the activation of each token.

# %%
for example in contexts.contexts(latent).top[:5]:
    text = store.window_text(example.token_ids)
    text[example.peak] = f"[{text[example.peak]}]"
    print(f"{example.activations.max():5.1f}  {' '.join(''.join(text).split())}")
contexts.show(latent, n=5)

# %% [markdown]
# ## Name
# A judge reads the contexts. `Baseline` needs no model: it names the most characteristic tokens.
# `OpenAIJudge` and `LocalJudge` write sentences, and all are scored (docs/explanations.md).

# %%
explanation = explain(contexts, [latent], Baseline(), scores=())[latent]
print(explanation.text)
print("promotes:  ", store.token_text(lens.promoted[latent, :8]))
print("suppresses:", store.token_text(lens.suppressed[latent, :8]))

# %% [markdown]
# ## Ablate
# Held-out text is read with the latent and without it. What does the model predict worse where the
# latent would have been active, and which next tokens become less likely?

# %%
effects = ablation_effects(model, dictionary, held_out, [latent], n=8, n_contexts=64)
print(f"Over {int(effects.n_tokens)} tokens, cross-entropy changes by {float(effects.ce_increase):+.3f} nats.")
print("less likely:", store.token_text(effects.suppressed[0]))
print("more likely:", store.token_text(effects.promoted[0]))

# %% [markdown]
# ## Steer
# The same prompt three times: as the model is, with the latent added on every token, and with more
# of it. Strengths are multiples of the largest activation on text.

# %%
prompt = "The most important thing that we can do this year is"
for strength in (0, 1, 2):
    edits = latent_edits(model, dictionary, add={latent: strength * largest}) if strength else {}
    made = generate(model, prompt, edits, max_new_tokens=40, do_sample=False)
    print(f"{strength} x: {prompt}{made.texts[0]}\n")

# %% [markdown]
# The steered text, colored by the same latent.

# %%
latent_view(model, dictionary, prompt + made.texts[0], latent)
