"""`dictionary-learning pretrained`: public releases of dictionaries, and their sites."""

import argparse
import logging
from collections.abc import Sequence

from dictionary_learning.cli._arguments import Parser, write_line

logger = logging.getLogger(__name__)

_SHOWN = 400
"""The most sites of a release that are listed."""


def build_parser(arguments: Sequence[str]) -> Parser:
    """Returns the command's parser."""
    about = "Lists public releases of dictionaries that this package loads; with --sites also the sites of each."
    parser = Parser("pretrained", about)
    parser.add_argument("name", nargs="?", help="a part of the release's name")
    parser.add_argument("--model", help="a part of the model's name")
    parser.add_argument("--site", help="a part of the path of one of its dictionaries, as resid_post or layer_12")
    parser.add_argument("--sites", action="store_true", help="list the sites of each release")
    parser.set_defaults(run=run)
    return parser


def run(namespace: argparse.Namespace) -> None:
    """Runs the command."""
    from dictionary_learning.interop import list_pretrained

    found = list_pretrained(namespace.model, namespace.site, namespace.name)
    for release in found:
        write_line(f"{release.name}  {release.model}  {release.format}  {release.repo}")
        if namespace.sites:
            sites = [site for site in release.sites if (namespace.site or "").lower() in site.lower()]
            for site in sites[:_SHOWN]:
                write_line(f"    {site}")
            if len(sites) > _SHOWN:
                write_line(f"    and {len(sites) - _SHOWN} more")
    if not found:
        logger.info("No known release fits. load_dictionary('owner/name') loads any repository by its name.")
