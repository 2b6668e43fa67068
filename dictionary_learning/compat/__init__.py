"""What only older scripts need: old names, old arguments, old return values."""

__all__: list[str] = []
