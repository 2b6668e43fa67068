"""A peer's own TopK training on saved activations, with its own defaults, in its own environment.

usage: top_k_step.py {sparsify,dl,saelens} {ROWS.safetensors,random:WIDTH} '{"steps": 190, "batch": 2048, "dict_size": 9216, "k": 32}'
Prints a line of JSON: median ms of a step, and FVU on the parts held out, if there are any.
"""

import json
import statistics
import sys
import time

import torch
from safetensors.torch import load_file

peer, path, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
steps, batch, dict_size, k = (options[name] for name in ("steps", "batch", "dict_size", "k"))
device = options.get("device", "cpu")
if path.startswith("random:"):
    # a few batches of activations that are not centered, again and again
    dim = int(path.removeprefix("random:"))
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(4 * batch, dim, generator=generator) + torch.randn(dim, generator=generator)
    rows = {"train": few.repeat(-(-steps // 4), 1)}
else:
    rows = load_file(path)
dim = rows["train"].shape[1]
torch.manual_seed(0)
order = torch.randperm(len(rows["train"]), generator=torch.Generator().manual_seed(0))[: steps * batch]

if peer == "sparsify":
    if device == "cpu":
        torch.cuda.is_bf16_supported = lambda *_, **__: False
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SaeConfig
    from sparsify.sign_sgd import SignSGD
    from sparsify.sparse_coder import SparseCoder

    sae = SparseCoder(dim, SaeConfig(num_latents=dict_size, k=k), device, torch.float32)
    lr = 5e-3 / (dict_size / 2**14) ** 0.5
    optimizer = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=lr), momentum=0.95)
    optimizer.train()

    def step(n, x):
        if n == 0:
            sae.b_dec.data = x.mean(0)
        sae.set_decoder_norm_to_unit_norm()
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    def finish():
        optimizer.eval()

    def reconstruct(x):
        return sae(x).sae_out

elif peer == "dl":
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=steps, activation_dim=dim, dict_size=dict_size, k=k, layer=10, lm_name="x", device=device,
        warmup_steps=steps // 10, seed=0,
    )  # fmt: skip
    step, reconstruct = trainer.update, trainer.ae

    def finish():
        pass

else:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=dim, d_sae=dict_size, k=k, device=device))
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-4)
    passes = torch.zeros(dict_size, device=device)

    def step(n, x):
        given = TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=passes > 1000, n_training_steps=n, is_logging_step=False
        )
        out = sae.training_forward_pass(step_input=given)
        acts = out.feature_acts.to_dense() if out.feature_acts.is_sparse else out.feature_acts
        passes.add_(1)
        passes[(acts > 0).any(0)] = 0
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()

    def finish():
        pass

    reconstruct = sae

times = []
for n, part in enumerate(order.split(batch)):
    x = rows["train"][part].float().to(device)
    start = time.perf_counter()
    step(n, x)
    if device != "cpu":
        torch.cuda.synchronize()
    times.append(time.perf_counter() - start)
finish()
result = {"peer": peer, "ms": statistics.median(times[3:]) * 1e3}
with torch.no_grad():
    for name in set(rows) - {"train"}:
        held = rows[name][:16384].float().to(device)
        error = sum((reconstruct(x) - x).pow(2).sum() for x in held.split(batch))
        result[name] = float(error / (held - held.mean(0)).pow(2).sum())
print(json.dumps(result))
