"""A host for tests of capture's changes: SSH server, controller, state directory, and a process that is its agent."""

import contextlib
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pki
from hostmesh_agent import arming, hold, lock
from hostmesh_agent.capture import Owner
from hostmesh_agent.config import AgentConfig, DnsSettings
from hostmesh_agent.keys import key_pem, new_key
from hostmesh_api.identity import ControllerIdentity
from hostmesh_controller.authority import Authority
from netns.conftest import PEER
from netns.space import Servers, Space, fork, run

SSH = "SSH-2.0-test"
CONTROLLER = (PEER[0], 9443)
ENVOY_UID = 900
RESOLV_CONF = "nameserver 192.0.2.1\n"
BOUND_S = 20.0


def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < end, f"not within {BOUND_S} s: {what}"
        time.sleep(0.01)


@dataclass
class CapturingHost:
    """The parts, and how many TLS connections the controller took."""

    config: AgentConfig
    controller: "Controller"
    servers: Servers

    def spec(self, **more: object) -> arming.Spec:
        config = self.config
        spec = arming.Spec(
            state_dir=str(config.state_dir),
            run_dir=str(config.run_dir),
            resolv_conf=str(config.dns.resolv_conf),
            control_socket=str(config.control_socket),
            ssh_ports=(22,),
            ssh_servers=(22,),
            controllers=(f"{CONTROLLER[0]}:{CONTROLLER[1]}",),
            envoy_uid=ENVOY_UID,
        )
        return replace(spec, **more)  # type: ignore[arg-type]

    def trial_over(self) -> None:
        until(lambda: hold.trial(self.config.run_dir) is None, "the trial is over")

    def hold(self) -> hold.Hold:
        found = hold.read(self.config.state_dir)
        assert found is not None
        return found


@dataclass
class Controller:
    """Takes TLS connections and says nothing. Ends when it is closed."""

    context: ssl.SSLContext
    listener: socket.socket
    taken: int = 0
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            plain.settimeout(5)
            with plain, contextlib.suppress(OSError), self.context.wrap_socket(plain, server_side=True):
                self.taken += 1

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.listener.close()


@contextmanager
def capturing_host(peer: Space, servers: Servers, directory: Path) -> Iterator[CapturingHost]:
    """Be in the host's namespace when this is called."""
    resolv_conf = directory / "resolv.conf"
    resolv_conf.write_text(RESOLV_CONF)
    config = AgentConfig(
        state_dir=directory / "state", run_dir=directory / "run", dns=DnsSettings(resolv_conf=resolv_conf)
    )
    config.run_dir.mkdir()
    servers.tcp(SSH, 22)
    authority = pki.new_authority(directory / "authority")
    pki.joined(config.state_dir, authority, endpoint=f"{CONTROLLER[0]}:{CONTROLLER[1]}")
    with peer():
        listener = socket.create_server(CONTROLLER)
    controller = Controller(_server_context(directory, authority), listener)
    # The kernel still tries this address: it would appear later, and a comparison would see that.
    run("ip", "-6", "address", "flush", "dev", "eth0", "scope", "link")
    try:
        yield CapturingHost(config, controller, servers)
    finally:
        controller.close()


def _server_context(directory: Path, authority: Authority) -> ssl.SSLContext:
    key = new_key()
    issued = authority.issue(
        key.public_key(), ControllerIdentity(pki.TRUST_DOMAIN), pki.now(), timedelta(days=1), addresses=[PEER[0]]
    )
    (directory / "server.pem").write_bytes(key_pem(key) + issued.chain_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    context.load_verify_locations(cadata=authority.bundle_pem.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextmanager
def agent_process(config: AgentConfig, act: Callable[[Owner], object]) -> Iterator[int]:
    """Run `act` in a process that holds the agent's lock and owns the rules, and then waits; ended at last."""
    done, told = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            os.setsid()
            with lock.held(config.state_dir):
                owner = Owner()  # for as long as the process lives
                kept = act(owner)
                os.write(told, b"." if kept is not None else b"-")
                signal.pause()
        finally:
            os._exit(1)
    os.close(told)
    try:
        assert os.read(done, 1) == b".", "the agent's process has done its part"
        yield pid
    finally:
        os.close(done)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
