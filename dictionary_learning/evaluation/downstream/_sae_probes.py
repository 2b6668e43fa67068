"""The labelled texts that the wheel of `sae-probes` carries; nothing of that package is imported.

Kantamneni et al. 2025, https://arxiv.org/abs/2502.16681. The wheel of version 0.4.2 (MIT) holds
`data/cleaned_data/*.csv.zst`, with the columns prompt and target, and a table of what each is.
"""

import importlib.util
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dictionary_learning._border import checked
from dictionary_learning.errors import DataError, MissingDependencyError, UnknownNameError
from dictionary_learning.evaluation.downstream._files import rows_of_bytes
from dictionary_learning.evaluation.downstream._tasks import ProbeTask, make_task

SHORT = (
    "5_hist_fig_ismale", "105_click_bait", "106_hate_hate", "114_nyc_borough_Manhattan", "120_us_timezone_Chicago",
    "125_world_country_Italy", "127_art_type_song", "131_temp_cat_Typical Time", "134_context_type_Belief_states",
    "87_glue_cola", "149_twt_emotion_happiness", "161_agnews_0",
)  # fmt: skip
"""Tasks with short texts, which take little time."""
_MASTER = "probing_datasets_MASTER.csv.zst"


@checked()
def sae_probes_tasks(names: Sequence[str] | str = SHORT, *, path: str | os.PathLike | None = None) -> list[ProbeTask]:
    """Returns binary tasks of the package `sae-probes`, without a network.

    Args:
        names: names such as "105_click_bait", with or without the number; "all" for all 113. By
            default twelve with short texts.
        path: the wheel (`pip download sae-probes==0.4.2 --no-deps`), or a folder that holds the
            package; by default the installed package.

    Raises:
        MissingDependencyError: it is not installed, and no path is given.
        DataError: there are no such data at the path.
        UnknownNameError: a name is not among the tasks.
    """
    data = _data_folder(path)
    table = rows_of_bytes((data / _MASTER).read_bytes(), _MASTER)
    binary = [row["Dataset save name"] for row in table if row["Data type"] == "Binary Classification"]
    known = {name.split("/")[-1].removesuffix(".csv"): name for name in binary}
    by_tag = {name.partition("_")[2]: name for name in known}
    wanted = list(known) if names == "all" else [names] if isinstance(names, str) else list(names)
    found: list[ProbeTask] = []
    for name in wanted:
        if name not in known and name not in by_tag:
            raise UnknownNameError("task of sae-probes", name, known)
        whole = by_tag.get(name, name)
        file = data
        for part in f"{known[whole]}.zst".split("/"):
            file = file / part
        rows = rows_of_bytes(file.read_bytes(), file.name)
        found.append(make_task(whole, [row["prompt"] for row in rows], [row["target"] for row in rows]))
    return found


def _data_folder(path: str | os.PathLike | None) -> Any:
    """Returns the folder of the data, a `Path` or one in a wheel."""
    if path is None:
        spec = importlib.util.find_spec("sae_probes")
        if spec is None or not spec.submodule_search_locations:
            raise MissingDependencyError("sae-probes", "Its tasks without path= the wheel")
        places: list[Any] = [Path(spec.submodule_search_locations[0])]
    else:
        root = Path(path)
        try:
            start: Any = zipfile.Path(root) if root.is_file() else root
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"'{root}' is no wheel ({error}). Give the wheel of sae-probes, or its folder.") from error
        places = [start, start / "sae_probes"]
    for place in places:
        if (place / "data" / _MASTER).exists():
            return place / "data"
    raise DataError(
        f"'{path}' holds no data of sae-probes. Give its wheel, of 'pip download sae-probes==0.4.2 --no-deps'."
    )
