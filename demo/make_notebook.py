"""Makes demo/interpret.ipynb of demo/interpret.py, cell by cell, and runs it.

The script is in percent format, which many editors show as cells: `# %%` begins one of code, and
`# %% [markdown]` one of text. Its docstring is the first.

    python demo/make_notebook.py        after make demo
"""

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import v4

SCRIPT = Path(__file__).parent / "interpret.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")
_CELL = re.compile(r"^# %%(.*)\n", re.M)


def notebook_of(script: str) -> Any:
    """Returns a notebook with the cells of a script, not run."""
    _, *parts = _CELL.split(script)  # a mark and what follows it, in turn
    cells = [v4.new_markdown_cell(ast.get_docstring(ast.parse(script)) or "")]
    for mark, text in zip(parts[::2], parts[1::2], strict=True):
        is_text = mark.strip() == "[markdown]"
        source = re.sub(r"^# ?", "", text, flags=re.M) if is_text else text
        cells.append((v4.new_markdown_cell if is_text else v4.new_code_cell)(source.strip("\n")))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # a random one would be another each time
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def run(notebook: Any, folder: Path) -> Any:
    """Runs a notebook in a folder, and leaves out what its cells say on the standard error."""
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, resources=resources, record_timing=False, timeout=600).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}  # not the version of this machine
    return notebook


if __name__ == "__main__":
    nbformat.write(run(notebook_of(SCRIPT.read_text()), NOTEBOOK.parent), NOTEBOOK)
    print(NOTEBOOK)
