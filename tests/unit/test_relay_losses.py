"""What the relay holds back, and for how long: over real gRPC streams."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from hostmesh_agent.relay import Relay
from hostmesh_agent.shrink import WAIT_S
from hostmesh_api.origin import Origin, parse_origin
from hostmesh_api.wire import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE
from unit.test_relay import Controller, Envoy, envoy, reconnected, relaying, resource
from waiting import until


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path / "controller.sock")


LISTENERS = tuple(f"0.0.0.0_{port}" for port in range(9000, 9010))


@asynccontextmanager
async def losing(tmp_path: Path, controller: Controller, accept_after_s: float) -> AsyncIterator[tuple[Relay, Envoy]]:
    """A relay whose controller has just taken all listeners away."""
    controller.put(LISTENER_TYPE, *(resource(name, "1") for name in LISTENERS))
    relaying_here = relaying(tmp_path, accept_after_s=accept_after_s)
    async with controller.running(), relaying_here as relay, envoy(tmp_path / "xds.sock") as proxy:
        await proxy.ask(LISTENER_TYPE)
        await proxy.ack(await proxy.next())
        await until(lambda: any(each.response_nonce for each in controller.requests))
        controller.take_away(LISTENER_TYPE)
        yield relay, proxy


def held_back(controller: Controller) -> list[str]:
    return [each.error_detail.message for each in controller.requests if each.HasField("error_detail")]


async def test_a_sudden_loss_is_refused_told_and_taken_when_the_owner_of_the_host_says_so(
    tmp_path: Path, controller: Controller
) -> None:
    async with losing(tmp_path, controller, accept_after_s=0) as (relay, proxy):
        await until(lambda: bool(held_back(controller)))
        assert "10 of 10 listeners would go at once" in held_back(controller)[0]
        (problem,) = relay.state().problems
        assert "hostmesh-agent config accept" in problem
        assert relay.accept() == "10 of 10 listeners would go at once"
        response = await proxy.next()
        assert sorted(response.removed_resources) == sorted(LISTENERS)
        assert relay.state().problems == ()
        assert relay.accept() == ""


async def test_a_loss_that_nobody_speaks_of_is_taken_after_a_while(tmp_path: Path, controller: Controller) -> None:
    async with losing(tmp_path, controller, accept_after_s=0.2) as (relay, proxy):
        response = await proxy.next()
        assert sorted(response.removed_resources) == sorted(LISTENERS)
        assert held_back(controller)
        assert relay.state().problems == ()


def _is_over(moment_s: float) -> bool:
    return asyncio.get_running_loop().time() > moment_s


async def test_a_loss_that_nobody_speaks_of_is_taken_though_no_stream_lasts_for_so_long(
    tmp_path: Path, controller: Controller
) -> None:
    async with losing(tmp_path, controller, accept_after_s=3 * WAIT_S) as (relay, proxy):
        loop = asyncio.get_running_loop()
        for _ in range(2):
            await until(lambda: bool(relay.state().problems))
            await until(partial(_is_over, loop.time() + 1.2 * WAIT_S))
            assert relay.state().problems
            await reconnected(relay, relay.state().since)
        began_s = loop.time()
        response = await proxy.next()
        assert sorted(response.removed_resources) == sorted(LISTENERS)
        assert loop.time() - began_s < 2.5 * WAIT_S, "not as long as the first time"


def told(controller: Controller) -> Origin | None:
    """What the agent said of the controller's store when it opened its last stream."""
    said = [each.node.metadata["origin"] for each in controller.requests if each.HasField("node")]
    return parse_origin(str(said[-1]))


async def test_what_is_known_of_the_store_outlives_the_agent_and_explains_a_loss_or_does_not(
    tmp_path: Path, controller: Controller
) -> None:
    everything = [resource(f"c{number}", "1") for number in range(9)]
    controller.put(CLUSTER_TYPE, *everything)
    controller.origin = Origin("aa", 7, "00")
    async with controller.running():
        async with relaying(tmp_path) as relay, envoy(tmp_path / "xds.sock") as proxy:
            await proxy.ask(CLUSTER_TYPE)
            await proxy.ack(await proxy.next())
            await until(lambda: relay.state().accepted.get(CLUSTER_TYPE) == 9)
        controller.shelf[CLUSTER_TYPE] = {}
        async with relaying(tmp_path) as relay:
            await until(lambda: any("held back" in each for each in relay.state().problems))
            assert told(controller) == controller.origin
            controller.put(CLUSTER_TYPE, *everything)
            await until(lambda: not relay.state().problems)
        controller.shelf[CLUSTER_TYPE] = {}
        controller.origin = Origin("aa", 8, "00", is_written=True)
        async with relaying(tmp_path) as relay, envoy(tmp_path / "xds.sock") as proxy:
            await proxy.ask(CLUSTER_TYPE)
            await until(lambda: bool(controller.requests[-1].response_nonce))
            assert not relay.state().problems, "an operator wrote it"


async def test_what_nobody_explains_and_is_not_much_waits_a_moment(tmp_path: Path, controller: Controller) -> None:
    controller.put(CLUSTER_TYPE, resource("a", "1"), resource("b", "1"))
    controller.origin = Origin("aa", 7, "00")
    async with controller.running(), relaying(tmp_path), envoy(tmp_path / "xds.sock") as proxy:
        await proxy.ask(CLUSTER_TYPE)
        await proxy.ack(await proxy.next())
        began_s = asyncio.get_running_loop().time()
        controller.take_away(CLUSTER_TYPE)
        assert sorted((await proxy.next()).removed_resources) == ["a", "b"]
        assert asyncio.get_running_loop().time() - began_s >= WAIT_S / 2


async def test_endpoints_that_change_on_a_stream_that_stands_for_long_do_not_wait(
    tmp_path: Path, controller: Controller
) -> None:
    controller.put(ENDPOINT_TYPE, resource("a", "1"))
    controller.origin = Origin("aa", 7, "00")
    async with controller.running():
        async with relaying(tmp_path) as relay, envoy(tmp_path / "xds.sock") as proxy:
            await proxy.ask(ENDPOINT_TYPE, "a")
            await proxy.ack(await proxy.next())
            await until(lambda: relay.accepted_version(ENDPOINT_TYPE, "a") == "1")
        controller.requests.clear()
        async with relaying(tmp_path, opening_s=0.0), envoy(tmp_path / "xds.sock") as proxy:
            await proxy.ask(ENDPOINT_TYPE, "a")
            await proxy.ack(await proxy.next())
            await until(lambda: any(each.type_url == ENDPOINT_TYPE for each in controller.requests))
            began_s = asyncio.get_running_loop().time()
            controller.put(ENDPOINT_TYPE, resource("a", "2"))
            assert [each.version for each in (await proxy.next()).resources] == ["2"]
            assert asyncio.get_running_loop().time() - began_s < WAIT_S / 2


def _has_grown(controller: Controller, refused: int) -> bool:
    return len(held_back(controller)) > refused


async def test_what_is_held_back_for_ever_is_told_once_and_so_is_its_end(
    tmp_path: Path, controller: Controller
) -> None:
    changes: list[str] = []
    controller.put(LISTENER_TYPE, *(resource(name, "1") for name in LISTENERS))
    async with (
        controller.running(),
        relaying(tmp_path, accept_after_s=0, changed=lambda: changes.append("")) as relay,
        envoy(tmp_path / "xds.sock") as proxy,
    ):
        await proxy.ask(LISTENER_TYPE)
        await proxy.ack(await proxy.next())
        await until(lambda: relay.state().accepted.get(LISTENER_TYPE) == len(LISTENERS))
        controller.take_away(LISTENER_TYPE)
        await until(lambda: len(held_back(controller)) == 1)
        for number in range(3):
            refused = len(held_back(controller))
            controller.put(LISTENER_TYPE, resource(LISTENERS[0], f"new {number}"))
            await until(partial(_has_grown, controller, refused))
        assert len(changes) == 1
        relay.accept()
        assert len(changes) == 2
