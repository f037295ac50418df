"""What operators do, at random, while everything is called all the time: no call may fail.

    python -m faults.changes --seed 7 --steps 60 --runs 3

Each run has a seed of its own, that of the first is given. A failure is told with the steps around it.
"""

import argparse
import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx

from e2e import test_envoy_life as life
from e2e.driver import PROGRAMS as SERVERS
from e2e.driver import PYTHON, eventually
from faults import wishes
from faults.scene import CLIENT, PROGRAMS, SERVER, TWIN, Scene, new_scene, signalled
from faults.wishes import Key, Wish
from hostmesh_controller.lab import agent
from hostmesh_controller.lab import layout as disk

_APART_S: Final = 1.0
"""Failures further apart are told as two."""
_BEFORE_S: Final = 6.0
_PAUSES_S: Final = (0.0, 0.0, 0.0, 0.05, 0.2, 0.5, 1.0, 2.0)
_WITHIN_S: Final = 60.0
_VOUCHED_S: Final = 2.0
GUEST: Final = "guest"
FOR_EVER: Final = ("tcp-kept", "grpc-stream")
"""Kinds of calls that stay open. They may be ended with the listener that let them in, once that has drained."""
LIFE: Final = (
    "agent-kill",
    "agent-stop",
    "controller-restart",
    "controller-away",
    "drain",
    "flip",
    "guest",
    "root",
    "upgrade",
)


class Api:
    """The controller's, on its own socket: a change takes as long as it takes, and no start of Python."""

    def __init__(self, scene: Scene) -> None:
        transport = httpx.HTTPTransport(uds=str(scene.layout.admin_socket))
        self._client = httpx.Client(base_url="http://controller", transport=transport, timeout=60, trust_env=False)

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        deadline = time.monotonic() + _WITHIN_S
        while True:
            try:
                answer = self._client.request(method, path, json=body)
            except httpx.TransportError:
                # It restarts: an operator would try again.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
                continue
            if not answer.is_success:
                raise RefusedError(f"{method} {path}: {answer.status_code} {answer.text}")
            return answer.json()

    def change(self, old: Wish, new: Wish) -> None:
        documents = [document for key, document in new.items() if old.get(key) != document]
        if documents:
            self("POST", "/v1/apply", {"documents": documents})
        gone = [_key(key) for key in old if key not in new]
        if gone:
            self("POST", "/v1/delete", {"keys": gone, "confirmed": True, "ignore_missing": True})


class RefusedError(Exception):
    """The controller does not take it."""


def _key(key: Key) -> dict[str, str]:
    kind, namespace, name = key
    return {"kind": kind, "namespace": namespace, "name": name}


@dataclass
class Log:
    """What was done, when: from, to, and what."""

    lines: list[tuple[float, float, str]] = field(default_factory=list)

    @contextmanager
    def __call__(self, text: str) -> Iterator[None]:
        began_s = time.monotonic()
        at = len(self.lines)
        self.lines.append((began_s, float("inf"), text))
        try:
            yield
        finally:
            self.lines[at] = (began_s, time.monotonic(), text)


@dataclass
class Run:
    """One run of steps, drawn from `random`."""

    scene: Scene
    api: Api
    random: Random
    only: Sequence[str]
    life: Sequence[str]
    wish: Wish
    base: Wish
    log: Log = field(default_factory=Log)
    busy: dict[str, threading.Thread] = field(default_factory=dict)
    drained: bool = False
    ill: bool = False
    came_s: dict[str, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    # --- configuration

    def well(self) -> set[str]:
        """The workloads that can be called with mutual TLS now, as far as the controller knows."""
        hosts = self.api("GET", "/v1/hosts")["items"]
        ready = {name.partition("/")[2] for host in hosts for name in host["ready"]}
        if self.drained or self.ill:
            ready.discard("shop-twin")
        # What an agent said of a workload before it went is no word on the one that came back.
        now_s = time.monotonic()
        return {each for each in ready if now_s - self.came_s.get(each, 0.0) > _VOUCHED_S}

    def configure(self) -> None:
        names = self.random.choices(list(self.only), k=self.random.choice((1, 1, 1, 2, 3)))
        wish, said = dict(self.wish), []
        for name in names:
            text = wishes.STEPS[name](self.random, wish)
            said += [f"{name}: {text}"] if text else []
        if not said or wish == self.wish or not wishes.may_be(self.wish, wish, self.well()):
            self.counts["left out"] += 1
            return
        self.counts.update(names)
        try:
            self.change(wish, "; ".join(said))
        except RefusedError as error:
            self.counts["refused"] += 1
            print(error, flush=True)

    def change(self, wish: Wish, text: str) -> None:
        with self.log(text):
            self.api.change(self.wish, wish)
        came = wishes.members(wish, "shop") - wishes.members(self.wish, "shop")
        self.came_s |= dict.fromkeys(came, time.monotonic())
        self.wish = wish

    # --- life

    def live(self) -> None:
        name = self.random.choice(list(self.life))
        host = self.random.choice((CLIENT, SERVER, TWIN))
        what: tuple[str, Callable[[], None]] | None = None
        if name == "agent-kill":
            what = f"agent/{host}", lambda: self._agent_killed(host)
        elif name == "agent-stop":
            for_s = self.random.uniform(0.5, 4)
            what = f"agent/{host}", lambda: self._agent_stopped(host, for_s)
        elif name in ("controller-restart", "controller-away"):
            for_s = 0.0 if name.endswith("restart") else self.random.uniform(1, 4)
            way = self.random.choice(("stop", "kill"))
            what = "controller", lambda: self._controller(way, for_s)
        elif name == "drain" and self._twin_may_go():
            self.drained = not self.drained
            verb = "drain" if self.drained else "undrain"
            what = f"agent/{TWIN}", lambda: self._drain(verb)
        elif name == "flip" and self._twin_may_go():
            self.ill = not self.ill
            command = ("rm", "-f", wishes.WELL) if self.ill else ("touch", wishes.WELL)
            with self.log(f"probe: {' '.join(command)}"):
                self.scene.run(TWIN, *command)
            self.counts[name] += 1
        elif name == "guest":
            what = "guest", self._guest
        elif name == "root":
            self._root()
            self.counts[name] += 1
        elif name == "upgrade":
            what = f"agent/{host}", lambda: self._upgrade(host)
        if what is None or (what[0] in self.busy and self.busy[what[0]].is_alive()):
            return
        self.counts[name] += 1
        thread = threading.Thread(target=self._guarded, args=(name, what[1]), name=name)
        self.busy[what[0]] = thread
        thread.start()
        if self.random.random() < 0.5:
            thread.join()

    def _guarded(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # told, and the run goes on
            with self.log(f"{name} FAILED: {error}"):
                pass

    def _twin_may_go(self) -> bool:
        if self.drained or self.ill:
            return True
        return "server" in wishes.members(self.wish, "shop") & self.well() and not set(wishes.subsets_called(self.wish))

    def _agent_killed(self, host: str) -> None:
        with self.log(f"kill agent/{host}"):
            agent.stop(self.scene.layout, host, signal.SIGKILL)
        with self.log(f"start agent/{host}"):
            self.scene.start(f"agent/{host}")

    def _agent_stopped(self, host: str, for_s: float) -> None:
        with self.log(f"SIGSTOP agent/{host}"):
            go_on = signalled(self.scene, host, signal.SIGSTOP)
            time.sleep(for_s)  # not a wait: how long it stands still
            go_on()

    def _controller(self, way: str, for_s: float) -> None:
        with self.log(f"{way} controller for {for_s:.1f} s"):
            getattr(self.scene, way)("controller")
            time.sleep(for_s)  # not a wait: how long it is away
            self.scene.start("controller")

    def _drain(self, verb: str) -> None:
        with self.log(f"{verb} {TWIN}"):
            # Whether calls are still under way then is not what is looked at.
            words = ("--within", "1") if verb == "drain" else ()
            self.scene.space(TWIN).run(["hostmesh-agent", verb, *words], timeout_s=60)

    def _guest(self) -> None:
        lab = self.scene.lab
        if GUEST in self.scene.lab.status()["hosts"]:
            with self.log("guest leaves"):
                self.scene.run(GUEST, "hostmesh-agent", "leave", "--purge")
            with self.log("guest is removed"):
                lab.verb("down", GUEST)
        else:
            with self.log("guest joins"):
                lab.verb("up", GUEST)

    def _root(self) -> None:
        roots = self.api("GET", "/v1/ca")["roots"]
        by_state = {each["state"]: each["id"] for each in roots}
        if "tainted" in by_state:
            step, body = "revoke", {"root": by_state["tainted"]}
        elif "retired" in by_state or "trusted" in by_state:
            step, body = "taint", {"root": by_state.get("retired", by_state.get("trusted")), "within_s": 2}
        elif "prepared" in by_state:
            step, body = "activate", {}
        else:
            step, body = "prepare", {}
        with self.log(f"ca {step} {body} of {by_state}"), contextlib.suppress(RefusedError):
            self.api("POST", f"/v1/ca/{step}", body or None)

    def _upgrade(self, host: str) -> None:
        words = life.binary(self.scene.lab, host, before=f": {self.random.random()}")
        with self.log(f"envoy upgrade on {host}"):
            said = life.upgrade(self.scene.lab, host, *words)
        if said:
            with self.log(f"upgrade on {host} said: {said}"):
                pass

    def settle(self) -> None:
        for thread in self.busy.values():
            thread.join()
        if self.ill:
            self.scene.run(TWIN, "touch", wishes.WELL)
        if self.drained:
            self._drain("undrain")
        self.ill = self.drained = False
        self.change(dict(self.base), "back to the first mesh")
        try:
            eventually(lambda: {"server", "solo", "shop-twin"} <= self.well(), "all can be called", 30)
        except AssertionError as error:
            told = {host: self.scene.agent(host) for host in (SERVER, TWIN)}
            ready = [(each["name"], each["ready"], each["workloads"]) for each in self.api("GET", "/v1/hosts")["items"]]
            raise AssertionError(f"{error}: {ready}: {json.dumps(told)}") from None


# --- the load ------------------------------------------------------------------------------------------------------


@contextmanager
def calling(scene: Scene, host: str, service: str, ports: tuple[int, int, int]) -> Iterator[list[Any]]:
    """Call the service from the host; the records are there when the context is left."""
    http, rpc, tcp = (f"{service}:{port}" for port in ports)
    command = ["nice", "-n", "-10", PYTHON, str(PROGRAMS / "load.py"), f"http://{http}/", rpc, tcp, scene.secret]
    program = scene.space(host).popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    records: list[Any] = []
    try:
        assert program.stdout is not None
        line = program.stdout.readline()
        assert line == "begun\n", f"the load does not begin: {line!r}"
        yield records
        output, errors = program.communicate("", timeout=30)
        assert program.returncode == 0, errors[-2000:]
        records += [(f"{host}>{service} {kind}", *rest) for kind, *rest in json.loads(output)]
    finally:
        program.kill()
        program.communicate()


class Counters:
    """Envoy's counters of failed handshakes and connections, by host; what went up is noted in the log."""

    _SIGNS: Final = (
        "fail_",
        "connection_error",
        "no_filter_chain",
        "cx_connect_fail",
        "no_cluster",
        "membership_healthy",
    )

    def __init__(self, scene: Scene, log: Log) -> None:
        self._scene, self._log = scene, log
        self._known: dict[tuple[str, str], str] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="counters")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._done.wait(0.3):
            for host in (CLIENT, SERVER, TWIN):
                with contextlib.suppress(OSError):
                    self._look(host)

    def _look(self, host: str) -> None:
        text = stats(self._scene, host)
        for line in text.splitlines():
            name, _, value = line.partition(": ")
            if any(sign in name for sign in self._SIGNS) and self._known.get((host, name), "0") != value:
                if (host, name) in self._known or value != "0":
                    with self._log(f"* {host} {name} {self._known.get((host, name))} -> {value}"):
                        pass
                self._known[host, name] = value


def stats(scene: Scene, host: str) -> str:
    init = disk.read_process(scene.layout.host(host).init)
    for path in sorted(Path(f"/proc/{init.pid}/root/var/lib/hostmesh/envoy").glob("**/admin*.sock")) if init else ():
        connection = HTTPConnection("envoy", timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(5)
        try:
            connection.sock.connect(str(path))
            connection.request("GET", "/stats")
            return connection.getresponse().read().decode()
        except (OSError, HTTPException):
            continue
        finally:
            connection.close()
    return ""


def incidents(records: Sequence[Any], log: Log, began_s: float) -> list[str]:
    """Return what failed, in heaps, each with what was done around it."""
    failed = [each for each in records if each[3] != "ok" and not each[0].endswith(FOR_EVER)]
    bad = sorted((at, took, kind, fate) for kind, at, took, fate, _ in failed)
    heaps: list[list[Any]] = []
    for each in bad:
        if heaps and each[0] - heaps[-1][-1][0] < _APART_S:
            heaps[-1].append(each)
        else:
            heaps.append([each])
    told = []
    for heap in heaps:
        from_s, to_s = heap[0][0], max(at + took for at, took, *_ in heap)
        counts = Counter(f"{kind}: {fate}" for *_, kind, fate in heap)
        lines = [f"{len(heap)} failed from {from_s - began_s:.2f} s to {to_s - began_s:.2f} s"]
        lines += [f"   {count} x {what}" for what, count in counts.most_common(8)]
        for since, until, text in log.lines:
            if until > from_s - _BEFORE_S and since < to_s:
                lines.append(f"     {since - began_s:8.2f} .. {until - began_s:8.2f}  {text[:400]}")
        told.append("\n".join(lines))
    return told


def base_of(scene: Scene) -> Wish:
    """The mesh with which runs begin and end."""
    return wishes.first({host: scene.ip(host) for host in (SERVER, TWIN)})


def prepare(scene: Scene) -> Wish:
    """Start the programs, and make the mesh with which runs begin."""
    for host, ports in (
        (TWIN, (wishes.HTTP_PORT, wishes.GRPC_PORT, wishes.TCP_PORT)),
        (SERVER, (wishes.SOLO_HTTP_PORT, wishes.SOLO_GRPC_PORT, wishes.SOLO_TCP_PORT)),
    ):
        http, rpc, tcp = ports
        scene.lab.detach(host, "python3", str(SERVERS / "http_echo.py"), str(http), host)
        scene.lab.detach(host, PYTHON, str(SERVERS / "grpc_echo.py"), "serve", str(rpc))
        scene.lab.detach(host, "python3", str(SERVERS / "tcp.py"), "serve", str(tcp))
        for port in ports:
            eventually(partial(_listens, scene, host, port), f"{host} serves {port}")
    scene.run(TWIN, "touch", wishes.WELL)
    wish = base_of(scene)
    Api(scene).change({}, wish)
    scene.lab.wait_for_workloads()
    eventually(lambda: scene.calls("solo", wishes.SOLO_HTTP_PORT), "the client calls solo", 30)
    return wish


def _listens(scene: Scene, host: str, port: int) -> bool:
    return bool(scene.run(host, "ss", "-Hltn", f"sport = :{port}").strip())


SHOP: Final = (wishes.HTTP_PORT, wishes.GRPC_PORT, wishes.TCP_PORT)
SOLO: Final = (wishes.SOLO_HTTP_PORT, wishes.SOLO_GRPC_PORT, wishes.SOLO_TCP_PORT)
LOADS: Final = ((CLIENT, "shop", SHOP), (TWIN, "shop", SHOP), (CLIENT, "solo", SOLO))


def play(
    scene: Scene,
    base: Wish,
    seed: int,
    steps: int,
    only: Sequence[str],
    life: Sequence[str],
    share: float,
    *,
    loads: Sequence[tuple[str, str, tuple[int, int, int]]] = LOADS,
    watch: bool = False,
) -> tuple[Run, list[str], int]:
    """Do so many steps under load; return what was done, what failed, and how many calls there were."""
    run = Run(scene, Api(scene), Random(seed), only, life, dict(base), base)
    with ExitStack() as stack:
        called = [stack.enter_context(calling(scene, *each)) for each in loads]
        began_s = time.monotonic()
        if watch:
            stack.enter_context(Counters(scene, run.log))
        for _ in range(steps):
            if life and run.random.random() < share:
                run.live()
            else:
                run.configure()
            time.sleep(run.random.choice(_PAUSES_S))  # not a wait: operators do not wait for anything
        run.settle()
        time.sleep(2)  # so long is looked on
    records = [record for each in called for record in each]
    return run, incidents(records, run.log, began_s), len(records)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only", default=",".join(wishes.STEPS), help="steps of configuration that may be drawn")
    parser.add_argument("--life", default="", help="steps of life that may be drawn")
    parser.add_argument("--share", type=float, default=0.3, help="of the steps that are of life")
    parser.add_argument("--watch", action="store_true", help="note Envoy's counters of what failed")
    parser.add_argument("--keep", type=Path, help="copy the lab's logs there")
    options = parser.parse_args(arguments)
    failed = 0
    with new_scene(options.seed, 0) as scene:
        base = prepare(scene)
        for seed in range(options.seed, options.seed + options.runs):
            only = [each for each in options.only.split(",") if each]
            life = [each for each in options.life.split(",") if each]
            run, told, calls = play(scene, base, seed, options.steps, only, life, options.share, watch=options.watch)
            failed += len(told)
            print(f"seed {seed}: {calls} calls, {len(told)} incidents; {dict(run.counts)}", flush=True)
            for each in told:
                print(each, flush=True)
        if options.keep:
            import shutil

            shutil.copytree(
                scene.layout.root, options.keep, ignore=shutil.ignore_patterns("disk*", "*.sock"), dirs_exist_ok=True
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
