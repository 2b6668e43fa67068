"""Pages about latents: a folder that a browser opens from the disk, and a server to try them."""

from dictionary_learning.dashboards._connecting import pages_of
from dictionary_learning.dashboards._pages import DictionaryPage
from dictionary_learning.dashboards._server import LiveServer
from dictionary_learning.dashboards._writing import write_dashboard

__all__ = ["DictionaryPage", "LiveServer", "pages_of", "write_dashboard"]
