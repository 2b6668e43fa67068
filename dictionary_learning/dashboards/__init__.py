"""Pages about latents: a folder that a browser opens from the disk."""

from dictionary_learning.dashboards._pages import DictionaryPage
from dictionary_learning.dashboards._writing import write_dashboard

__all__ = ["DictionaryPage", "write_dashboard"]
