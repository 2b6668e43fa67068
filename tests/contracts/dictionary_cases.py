"""Every wiring with every nonlinearity, and the classes by name: what the contracts are held against."""

import copy

import torch
from torch import Tensor

from dictionary_learning import ops
from dictionary_learning.dictionaries import DICTIONARIES, WIRINGS, Dictionary, DictionaryShape, Trainable
from dictionary_learning.dictionaries._leave_one_out import LeaveOneOut
from dictionary_learning.dictionaries._normalized import Normalized
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES, SparseSelection
from dictionary_learning.latents import to_dense

OPTIONS = {
    "relu": {},
    "identity": {},
    "tanh_relu": {},
    "gated": {},
    "jump_relu": {"initial_threshold": 0.3, "bandwidth": 0.4},
}
"""What a nonlinearity is built with that keeps no set number."""
SHAPES = {
    "autoencoder": DictionaryShape((12,), (12,), 40),
    "transcoder": DictionaryShape((12,), (10,), 40),
    "skip_transcoder": DictionaryShape((12,), (10,), 40),
    "crosscoder": DictionaryShape((7, 5), (7, 5), 40),
    "cross_layer_transcoder": DictionaryShape((7, 5), (6, 4), 40),
    "heads": DictionaryShape((12,), (12,), 40, n_heads=2),
}
KINDS = [name for name, _ in NONLINEARITIES.items()]
PAIRS = [(w, n) for w in WIRINGS for n in KINDS if w != "cross_layer_transcoder" or not NONLINEARITIES[n].is_tied]
"""One matrix for encoder and decoder is not to be had where a layer writes several."""
NAMED = {
    "MatryoshkaBatchTopKSAE": {"k": 3, "group_sizes": [10, 30]},
    "JumpReluAutoEncoder": {"initial_threshold": 0.3, "bandwidth": 0.4, "apply_b_dec_to_input": True},
    "AutoEncoderNew": {},
    "AutoEncoder": {"apply_b_dec_to_input": False},
    "GatedAutoEncoder": {},
    "SkipAutoencoder": {"nonlinearity": {"name": "top_k", "k": 3}},
    "BatchTopKSAE": {"k": 3, "rank_by_norm": True},
    **{name: {"k": 3} for name in ("AutoEncoderTopK", "GroupMaxSAE", "AbsTopKSAE", "MatchingPursuitSAE")},
}
ANY = [*PAIRS, *NAMED, "IdentityDict", "Normalized", "LeaveOneOut"]
SELECTING = [name for name in KINDS if issubclass(NONLINEARITIES[name], SparseSelection)]
X = torch.randn(24, 12, generator=torch.Generator().manual_seed(1))


def kind(name: str):
    return NONLINEARITIES[name](**OPTIONS.get(name, {"k": 3}))


def wired(wiring: str, name: str, **options) -> Trainable:
    """Returns a dictionary with no tensor at its initial value."""
    shape = SHAPES[wiring]
    if NONLINEARITIES[name].is_tied:
        shape = DictionaryShape(shape.inputs, shape.inputs, shape.dict_size, shape.n_heads)
    return moved(WIRINGS[wiring].build(shape, kind(name), None, **options))


def build(case: tuple[str, str] | str) -> Dictionary:
    if not isinstance(case, str):
        return wired(*case)
    if case == "IdentityDict":
        return DICTIONARIES[case](12)  # type: ignore[call-arg]
    if case == "LeaveOneOut":
        return LeaveOneOut(build("AutoEncoderTopK"), 0.3)
    if case == "Normalized":
        return Normalized(build("AutoEncoderTopK"), "layer_norm", site_dims=[7, 5], scales=[0.5, 3.0])
    return moved(DICTIONARIES[case](12, 40, **NAMED[case]))  # type: ignore[arg-type]


def moved(built: Trainable) -> Trainable:
    with torch.no_grad():
        for name, p in built.named_parameters():
            p.add_(torch.rand_like(p) if name.endswith("threshold") else 0.3 * torch.randn_like(p))
        for buffer in built.buffers():
            buffer.fill_(0.5)
        for part in built.coders():
            if part.coder.is_tied:
                part.coder.W_dec.copy_(torch.nn.functional.normalize(part.coder.W_dec, dim=1))
    return built


def close(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compares with a tolerance relative to the largest value of each: sums of terms of that size may cancel to anything."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        error = (got[name].double() - value.double()).abs().max()
        # thresholds and their gradients stay float32
        rounding = max(tolerance, 1e-6) if got[name].dtype == torch.float32 else tolerance
        assert error <= rounding * max(float(value.abs().max()), 1.0), f"{name}: {error:.1e}"


def objective(built: Trainable, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns a loss that reaches everything that is learnt, and what it is made of."""
    latents, pre = built.encode_latents(x)
    x_hat = built.decode_latents(latents, x)
    dense = to_dense(latents)
    loss = x_hat.sin().sum() + 0.1 * dense.pow(2).sum()
    seen = {"latents": dense.detach(), "x_hat": x_hat.detach()}
    for method in ("gate", "fires"):
        if pre is not None and all(hasattr(part.coder.nonlinearity, method) for part in built.coders()):
            made = to_dense(built.pointwise(method, pre))
            weights = torch.linspace(-1, 1, built.dict_size, dtype=x.dtype)
            loss = loss + (made * weights).sum()
            seen[method] = made.detach()
    return loss, seen


def with_gradients(built: Trainable, x: Tensor, backend: str | None = "reference") -> dict[str, Tensor]:
    built, x = copy.deepcopy(built), x.clone().requires_grad_()
    with ops.use_backend(backend):
        loss, seen = objective(built, x)
        loss.backward()
    assert x.grad is not None
    gradients = {f"gradient of {name}": p.grad for name, p in built.named_parameters() if p.grad is not None}
    return {**seen, "gradient of x": x.grad, **gradients}
