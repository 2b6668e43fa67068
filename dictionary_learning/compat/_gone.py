"""What dictionary-learning 0.1 had and this package has not: importable, and refused when used."""

from typing import Any

from dictionary_learning.errors import ConfigError

_REASONS = {
    "HeadActivationBuffer": "It did not run there. ActivationBuffer(..., io='heads') with "
    "trainSAE(..., activations_split_by_head=True) trains a dictionary for each attention head",
    "NNsightActivationBuffer": "Give the same text and model to ActivationBuffer, which takes submodules of nnsight",
    "S3RCache": "It unpickles what it downloads. Download the files, and train on tensors that you load",
    "ActivaultS3ActivationBuffer": "It unpickles what it downloads. Write activations by write_cache",
    "create_s3_client": "Activations are not read from S3. Write them by write_cache, on a disk",
    "log_stats": "trainSAE logs what the last step computed; give `loggers=`",
    "new_wandb_process": "Runs are logged in this process; give use_wandb=True",
}


class _Gone:
    """Raises when it is called, or when anything of it is used."""

    def __init__(self, name: str):
        self.__name__ = name

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise ConfigError(f"{self.__name__} of dictionary-learning 0.1 is gone (docs/migrating.md). "
                          f"{_REASONS[self.__name__]}.")  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self()


HeadActivationBuffer: Any = _Gone("HeadActivationBuffer")
NNsightActivationBuffer: Any = _Gone("NNsightActivationBuffer")
S3RCache: Any = _Gone("S3RCache")
ActivaultS3ActivationBuffer: Any = _Gone("ActivaultS3ActivationBuffer")
create_s3_client: Any = _Gone("create_s3_client")
log_stats: Any = _Gone("log_stats")
new_wandb_process: Any = _Gone("new_wandb_process")
