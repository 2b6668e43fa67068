"""What the site has beside docs/: the README, pages of the project, and the reference."""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dictionary_learning"
PROJECT = {
    "index.md": "README.md",
    "project/architecture.md": "ARCHITECTURE.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/changelog.md": "CHANGELOG.md",
}
MODULES = {
    "training": "Training",
    "buffer": "Activation buffer",
    "contexts": "Contexts",
    "activations.cache": "Activation cache",
    "data": "Data",
    "models": "Models",
    "sites": "Sites",
    "latents": "Latents",
    "dictionaries": "Dictionaries",
    "trainers": "Trainers",
    "trainers.recipes": "Recipes",
    "evaluation": "Evaluation",
    "evaluation.reports": "Reports",
    "evaluation.downstream": "Downstream evaluation",
    "sweeps": "Sweeps",
    "synthetic": "Known features",
    "session": "Sessions",
    "interventions": "Interventions",
    "attribution": "Attribution",
    "interpretation": "Interpretation",
    "interpretation.explanations": "Explanations",
    "dashboards": "Dashboards",
    "exports": "Exports",
    "interop": "Formats of other packages",
    "loggers": "Loggers",
    "parallel": "Several devices",
    "ops": "Operations",
    "config": "Configs",
    "errors": "Errors",
}
"""The public modules, in the order of the reference."""
_SHIM, _OWN_SHIM = "https://unpkg.com/iframe-worker/shim", "assets/iframe-worker.js"
ASSETS = (_OWN_SHIM, "assets/extra.css")
_LINK = re.compile(r"\[([^][]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that lie outside docs/, and one for each public module."""
    for target, source in PROJECT.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text(encoding="utf-8")))
    for asset in ASSETS:
        content = (ROOT / "site" / Path(asset).name).read_text(encoding="utf-8")
        files.append(File.generated(config, asset, content=content))
    listed = [f"- [{title}]({module}.md): `dictionary_learning.{module}`" for module, title in MODULES.items()]
    about = "# Reference\n\nWhat scripts may import, from the docstrings. All else may change.\n\n"
    files.append(File.generated(config, "reference/index.md", content=about + "\n".join(listed) + "\n"))
    for module, title in MODULES.items():
        page = f"# {title}\n\n{_directives(module)}\n"
        files.append(File.generated(config, f"reference/{module}.md", content=page))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Lets the search of pages on a disk load its helper from there too."""
    up = "../" * page.file.src_uri.count("/")
    return output.replace(_SHIM, f"{up}{_OWN_SHIM}")


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Lets names of files and tests in tables break after a slash or a colon, and nowhere else."""

    def breakable(found: re.Match[str]) -> str:
        return re.sub(r"(::|/)(?=\w)", r"\1<wbr>", found[0])

    return re.sub(r"<td[^>]*>.*?</td>", lambda cell: re.sub(r"(?<=<code>)[^<]+", breakable, cell[0]), html, flags=re.S)


def on_config(config: Any) -> Any:
    """Lists the pages of the reference in the navigation."""
    pages: list[Any] = ["reference/index.md", *({title: f"reference/{m}.md"} for m, title in MODULES.items())]
    config["nav"] = [{"Reference": pages} if "Reference" in entry else entry for entry in config["nav"]]
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    own = page.file.src_uri
    source = PROJECT.get(own, f"docs/{own}")
    pages = {name: target for target, name in PROJECT.items()}

    def turned(found: re.Match[str]) -> str:
        path = (ROOT / source).parent.joinpath(found[2]).resolve()
        there = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else found[2]
        target = pages.get(there) or (there.removeprefix("docs/") if there.startswith("docs/") else None)
        if target is None:
            return found[1]  # a file of the repository, which is no page
        return f"[{found[1]}]({'../' * own.count('/')}{target}{found[3] or ''})"

    return markdown if own.startswith("reference/") else _LINK.sub(turned, markdown)


def _directives(module: str) -> str:
    """Returns what mkdocstrings shows of a module: its docstring and public names."""
    names = _public(module)
    head = f"::: dictionary_learning.{module}\n    options: {{members: false, heading_level: 2}}"
    shown = [f"::: dictionary_learning.{module}.{name}\n    options: {{heading_level: 3}}" for name in names]
    return "\n\n".join([head, *shown])


def _public(module: str) -> list[str]:
    """Returns what a module lists in `__all__`, or defines without an underscore."""
    path = PACKAGE.joinpath(*module.split("."))
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return sorted(ast.literal_eval(node.value), key=str.lower)
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
