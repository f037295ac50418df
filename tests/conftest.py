"""What holds for every test: quick folders run first, and each folder has its own bound on a test's time."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import structlog

TESTS: Final = Path(__file__).parent
TIMEOUT_S: Final = {
    "unit": 60,
    "golden": 60,
    "ssh": 120,
    "netns": 60,
    "e2e": 300,
    "hosts": 300,
    "bench": 300,
    "ansible": 180,
    "packages": 3600,
}
"""A folder's bound on one test with its fixtures; in the order of running, so that what is cheap fails first."""
MARKED: Final = ("netns", "e2e", "hosts", "packages", "ansible")
"""Folders that need more than a Python: each is also a marker, for `pytest -m 'not e2e'`."""

MADE_ONCE: Final = ("hosts",)
"""Folders whose first test waits for what all share (packages, roots, hosts): each step of that has its own bound."""

LONG: Final = frozenset(
    {
        "test_addresses",
        "test_backup",
        "test_boot",
        "test_bugreport",
        "test_capture_policy",
        "test_changes",
        "test_cold_copy",
        "test_controller_moves",
        "test_dead_hosts",
        "test_discovery",
        "test_envoy_life",
        "test_identities",
        "test_leave",
        "test_rollout",
        "test_transparent",
    }
)
"""Files of e2e whose tests take minutes: `make test-long` runs them, `make test` does not."""


def folder_of(path: Path) -> str:
    """Return the folder directly under tests/ that holds the file, or "" if there is none."""
    return path.relative_to(TESTS).parts[0] if path.is_relative_to(TESTS) else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = folder_of(item.path)
        if folder in MARKED:
            item.add_marker(folder)
        if folder == "e2e" and item.path.stem in LONG:
            item.add_marker("long")
        if folder in TIMEOUT_S and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S[folder], func_only=folder in MADE_ONCE))
    order = {folder: place for place, folder in enumerate(TIMEOUT_S)}
    items.sort(key=lambda item: order.get(folder_of(item.path), len(order)))


@pytest.fixture(autouse=True)
def _fresh_logging() -> Iterator[None]:
    """Undo what a command called in the test's own process configured: its stderr is closed when the test ends."""
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers.clear()
