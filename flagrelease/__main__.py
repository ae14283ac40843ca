"""`python -m flagrelease`."""

from flagrelease.cli import run

run()
