"""mats_sae_training, from which SAELens grew, by its import names."""

__all__: list[str] = []
