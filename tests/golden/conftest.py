"""The option that writes what is expected anew, and the hosts on which live tests run."""

from collections.abc import Iterator

import pytest

from golden.live import LiveHost, Network


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/*/expect anew")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture
def web(net: Network) -> Iterator[LiveHost]:
    """The calling host of a module's network; the test's thread is on it."""
    with net.hosts["web"]():
        yield net.hosts["web"]


@pytest.fixture
def canary(net: Network) -> Iterator[LiveHost]:
    """Another caller, as `web`."""
    with net.hosts["canary"]():
        yield net.hosts["canary"]
