"""What only scripts written for dictionary-learning 0.1 need; their old addresses re-export it."""

__all__: list[str] = []
