"""Attributes and saved keys of trainers by their names in dictionary-learning 0.1."""

from typing import Any, NoReturn

from dictionary_learning.trainers._run_info import FACTS

_SETTINGS = {"top_k_aux": "k_aux", "l1_penalty": "sparsity_penalty", "sparsity_coeff": "sparsity_penalty"}
_FACTS = FACTS - {"device"}
_FIGURES = ("effective_l0", "pre_norm_auxk_loss", "lp_loss", "scaled_lp_loss", "next_p")
_GONE = {
    "get_auxiliary_loss": "the loss of dead latents is a part of `loss`",
    "update_threshold": "thresholds are updated in `update`",
    "update_annealed_k": "k follows from the step",
    "resample_neurons": "latents are resampled in `update`, every resample_steps",
    "lp_norm": "the penalty is one of `PENALTIES`",
}


class SavedSettings(dict[str, Any]):
    """Settings of a trainer, which are also found by their names in dictionary-learning 0.1."""

    def __missing__(self, name: str) -> Any:
        if name in ("l1_penalty", "top_k_aux", "initial_sparsity_penalty") and _older_name(name) in self:
            return self[_older_name(name)]
        if name == "group_sizes" and self.get("group_fractions"):
            from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

            fractions = tuple(self["group_fractions"])
            return MatryoshkaBatchTopKTrainer.Config(group_fractions=fractions, dict_size=self["dict_size"]).group_sizes
        raise KeyError(name)


class Scheduler:
    """The learning rate of a trainer, in the form of a scheduler of torch."""

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self.optimizer = trainer.optimizer

    @property
    def last_epoch(self) -> int:
        """The steps that were made."""
        return self._trainer.step

    def get_last_lr(self) -> list[float]:
        """Returns the learning rate of the next step of each group of parameters."""
        rate = self._trainer.learning_rate(self._trainer.step)
        return [rate * group.get("lr_factor", 1.0) for group in self.optimizer.param_groups]


def older_attribute(trainer: Any, name: str) -> Any:
    """Returns an attribute of a trainer of dictionary-learning 0.1.

    Raises:
        AttributeError: The trainer has none of this name.
    """
    if name in _GONE:
        raise AttributeError(f"{type(trainer).__name__} has no `{name}`: {_GONE[name]} (docs/migrating.md).")
    if name.startswith("_") or "settings" not in vars(trainer):
        raise AttributeError(f"'{type(trainer).__name__}' has no attribute '{name}'.")
    if name == "scheduler":
        return Scheduler(trainer)
    if name in _FACTS:
        return getattr(trainer.run, name)
    revival = getattr(trainer, "revival", None) if hasattr(type(trainer), "revival") else None
    if name == "num_tokens_since_fired" and revival is not None:
        return trainer.dead.tokens_since_fired
    if name == "dead_features" and revival is not None:
        return int(trainer.dead.mask.sum())
    if name in _FIGURES:
        figures = trainer.metrics()
        own = {"pre_norm_auxk_loss": "auxk_loss", "next_p": "p", "lp_loss": "sparsity_loss"}.get(name, name)
        if own in figures:
            return figures[own]
        return -1 if name in ("effective_l0", "pre_norm_auxk_loss") else _missing(trainer, name)
    settings, own = trainer.settings, _older_name(name)
    return getattr(settings, own) if own in type(settings).__dataclass_fields__ else _missing(trainer, name)


def _older_name(name: str) -> str:
    return {**_SETTINGS, "initial_sparsity_penalty": "sparsity_penalty"}.get(name, name)


def _missing(trainer: Any, name: str) -> NoReturn:
    raise AttributeError(f"'{type(trainer).__name__}' has no attribute '{name}'.")
