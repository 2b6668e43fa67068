"""SAELens' own training on saved activations, in its own environment.

usage: saelens_synthetic.py ROWS.npy '{"out": "sae.safetensors", "architecture": "topk", "dict_size": 256, "sae": {"k": 6}}'

Further keys: "seed" (0), "batch" (1024), and "trainer", fields of SAELens' synthetic runner, whose defaults are taken for all that is
not given, as "lr" (3e-4) and "lr_decay_steps" (0). A list of such objects is trained one after another on the same rows.
Writes the weights of SAELens' inference dictionary, and what that encodes of the first rows, by which a reader can check its own
code. Prints a line of JSON: {"runs": [{"seconds": 3.1, "steps": 976}]}.
"""

import json
import sys
import tempfile
import time

import numpy as np
import torch
from sae_lens import SAE, LoggingConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.synthetic import SyntheticModelConfig, SyntheticSAERunnerConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import save_file

_CHECKED_ROWS = 512


def train(rows, job):
    """Trains one dictionary; returns it as SAELens would load it, and the seconds that took."""
    batch = job.get("batch", 1024)
    steps = len(rows) // batch
    torch.manual_seed(job.get("seed", 0))  # SAELens' trainer sets none
    sae_class, config_class = get_sae_training_class(job["architecture"])
    sae = sae_class(config_class(d_in=rows.shape[1], d_sae=job["dict_size"], **job.get("sae", {})))
    runner = SyntheticSAERunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=2, hidden_dim=rows.shape[1]),  # asked for, and not used
        sae=sae.cfg,
        training_samples=steps * batch,
        batch_size=batch,
        logger=LoggingConfig(log_to_wandb=False),
        **job.get("trainer", {}),
    )
    batches = (torch.from_numpy(np.array(rows[n * batch : (n + 1) * batch])) for n in range(steps))
    trainer = SAETrainer(cfg=runner.to_sae_trainer_config(), sae=sae, data_provider=batches)
    start = time.perf_counter()
    sae = trainer.fit()
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return SAE.load_from_disk(folder), {"seconds": seconds, "steps": steps}


@torch.no_grad()
def export(sae, rows, path):
    """Writes a dictionary whose decoder norms are folded into its encoder, in SAELens' names, and a check."""
    x = torch.from_numpy(np.array(rows[:_CHECKED_ROWS]))
    latents = sae.encode(x)
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        sae.fold_W_dec_norm()
        sae.cfg.rescale_acts_by_decoder_norm = False
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "b_gate", "b_mag", "r_mag")
    weights = {name: getattr(sae, name) for name in names if getattr(sae, name, None) is not None}
    if not sae.cfg.apply_b_dec_to_input:
        weights["no_centering"] = torch.ones(1)
    tensors = {**weights, "check_x": x, "check_latents": latents, "check_outputs": sae.decode(sae.encode(x))}
    options = {
        name: getattr(sae.cfg, name) for name in ("k", "max_iterations", "residual_threshold") if hasattr(sae.cfg, name)
    }
    metadata = {"architecture": sae.cfg.architecture(), "options": json.dumps(options)}
    save_file({name: tensor.detach().float().contiguous().clone() for name, tensor in tensors.items()}, path, metadata)


if __name__ == "__main__":
    jobs = json.loads(sys.argv[2])
    saved_rows = np.load(sys.argv[1], mmap_mode="r")
    results = []
    for given in jobs if isinstance(jobs, list) else [jobs]:
        trained, figures = train(saved_rows, given)
        export(trained, saved_rows, given["out"])
        results.append(figures)
    print(json.dumps({"runs": results}))
