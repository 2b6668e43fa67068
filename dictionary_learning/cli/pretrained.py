"""`dictionary-learning pretrained`: public releases of dictionaries, and their sites."""

import argparse
import logging

from dictionary_learning.interop import list_pretrained

logger = logging.getLogger(__name__)

_SHOWN = 400
"""Sites of a release that are listed."""


def add_parser(commands: argparse._SubParsersAction, arguments: list[str]) -> None:
    """Adds the command."""
    about = "Lists public releases of dictionaries that this package loads; with --sites also what each of them has."
    parser = commands.add_parser("pretrained", help="list public releases of dictionaries", description=about)
    parser.add_argument("name", nargs="?", help="a part of the release's name")
    parser.add_argument("--model", help="a part of the model's name")
    parser.add_argument("--site", help="a part of the path of one of its dictionaries, as resid_post or layer_12")
    parser.add_argument("--sites", action="store_true", help="list the sites of each release")
    parser.set_defaults(run=run)


def run(namespace: argparse.Namespace) -> None:
    """Runs the command."""
    found = list_pretrained(namespace.model, namespace.site, namespace.name)
    for release in found:
        logger.info("%s  %s  %s  %s", release.name, release.model, release.format, release.repo)
        if namespace.sites:
            wanted = (namespace.site or "").lower()
            sites = [site for site in release.sites if wanted in site.lower()]
            for site in sites[:_SHOWN]:
                logger.info("    %s", site)
            if len(sites) > _SHOWN:
                logger.info("    and %d more", len(sites) - _SHOWN)
    if not found:
        logger.info(
            "No release that is known fits. Any repository can be loaded by its name: load_dictionary('owner/name')."
        )
