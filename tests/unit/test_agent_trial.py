"""A patched bootstrap is what Envoy is started with next, if Envoy takes it."""

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hostmesh_agent import artifact, bootstrap, process, trial, workdir
from hostmesh_agent.bootstrap import BootstrapInput, build
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.envoy import Supervisor, files_limit
from hostmesh_agent.envoy_command import EnvoyCommand
from hostmesh_agent.envoy_unit import AsChild
from hostmesh_agent.next_envoy import NextEnvoy

WAIT_S = 20.0

STATS = {"stats_config": {"stats_tags": [{"tag_name": "mine", "fixed_value": "x"}]}, "stats_flush_interval": "7s"}
BAD = {"static_resources": {"clusters": [{"name": "x", "type": "EDS"}]}}


def wanted(patch: object) -> BootstrapInput:
    return BootstrapInput("web-1", Path("/run/hostmesh/xds.sock"), 1 << 12, json.dumps(patch) if patch else "")


@pytest.fixture
def command() -> Iterator[EnvoyCommand]:
    with tempfile.TemporaryDirectory(prefix="hostmesh-", ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o755)
        root = os.geteuid() == 0
        owner = workdir.account("nobody") if root else workdir.Account(os.geteuid(), os.getegid(), switch=False)
        workdir.prepare(path / "envoy", owner)
        installed = artifact.install(None, None, path)
        yield EnvoyCommand(installed, build(wanted(None)), path / "envoy", owner, 1, "warning", files_limit())


def test_lists_grow_and_single_values_are_replaced() -> None:
    patch = {"static_resources": {"clusters": [{"name": "mine"}]}, "overload_manager": {"refresh_interval": "5s"}}
    document = json.loads(build(wanted(patch)))
    assert [each["name"] for each in document["static_resources"]["clusters"]] == [
        "hostmesh-relay",
        "hostmesh-rehearsal",
        "mine",
    ]
    assert document["overload_manager"]["refresh_interval"] == "5s"
    assert len(document["overload_manager"]["resource_monitors"]) == 1
    assert "stats_flush_on_admin" not in json.loads(build(wanted(STATS)))


def test_what_the_agent_depends_on_cannot_be_patched() -> None:
    patch = {"node": {"id": "other"}, "admin": {"allow_paths": []}, "dynamic_resources": {"cds_config": {}}}
    assert build(wanted(patch)) == build(wanted(None))
    assert patch.keys() == bootstrap.AGENTS_OWN


async def test_envoy_takes_a_good_patch_and_says_what_is_wrong_with_another(command: EnvoyCommand) -> None:
    before = sorted(command.directory.iterdir())
    assert await trial.refusal(replace(command, bootstrap=build(wanted(STATS)))) == ""
    assert "eds" in (await trial.refusal(replace(command, bootstrap=build(wanted(BAD))))).lower()
    assert sorted(command.directory.iterdir()) == before


async def test_an_envoy_that_does_not_say_is_not_waited_for(
    command: EnvoyCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = command.directory.parent / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(trial, "WITHIN_S", 0.5)
    said = await trial.refusal(replace(command, installed=replace(command.installed, path=slow)))
    assert said.startswith("Envoy does not say within")


async def test_a_patch_with_which_envoy_ends_when_it_starts_is_left_out_and_told(command: EnvoyCommand) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    listener = {
        "name": "mine",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": taken.getsockname()[1]}},
        "filter_chains": [{}],
    }
    following = NextEnvoy(AgentConfig(), "web-1", command)
    assert await following.take_patch(json.dumps({"static_resources": {"listeners": [listener]}}))
    assert following.problem == ""
    news = asyncio.Event()
    supervisor = Supervisor(lambda: following.command, news.set, AsChild(following.command.directory), following.tried)
    with taken:
        running = asyncio.create_task(supervisor.run())
        try:
            async with asyncio.timeout(WAIT_S):
                while not (following.problem and supervisor.status().view.pid):
                    news.clear()
                    await news.wait()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            process.stop_recorded(command.directory, 5)
    assert "Address already in use" in following.problem
    assert supervisor.status().view.restarts == 2
    assert following.command.bootstrap == command.bootstrap


def test_one_bad_start_leaves_a_patch_in_and_another_patch_is_tried_anew(command: EnvoyCommand) -> None:
    following = NextEnvoy(AgentConfig(), "web-1", command)
    for why in ("killed by SIGKILL", "", "killed by SIGKILL"):
        following.command = replace(command, bootstrap=b"patched")
        following.tried(why)
        assert following.command.bootstrap == b"patched"
    following.tried("killed by SIGKILL")
    assert (following.command.bootstrap, "SIGKILL" in following.problem) == (command.bootstrap, True)
