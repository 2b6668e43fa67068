"""A browser for the report's page."""

from tests.browser import browser, visits  # noqa: F401  (fixtures)
