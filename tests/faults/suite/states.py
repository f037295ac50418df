"""What befalls the agent's files: the disk is full, files are cut off or hold nonsense."""

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from e2e.driver import eventually
from faults.fault import Fault, PromiseBrokenError
from faults.scene import SERVER, STATE, Scene
from hostmesh_controller.lab import agent, envoy

_ROOM_BYTES: Final = 16 * 1024 * 1024
"""Far above what counts as next to none."""
_UP_S: Final = 20.0
_SPARED: Final = (".sock", ".log", "-shm", "-wal", "agent.lock", "/envoy-bin/", "resolv.conf.before", "/hold")
"""Sockets and logs hold no state; a database's log belongs to its file; the binary is verified by its digest at each
start and fetched again."""


def on_a_disk_of_its_own(scene: Scene) -> None:
    """Move the state of the server's agent to a small file system, on which agent and Envoy run from then on."""
    agent.stop(scene.layout, SERVER, signal.SIGTERM)
    envoy.kill(scene.layout, SERVER)
    size = int(scene.run(SERVER, "du", "-sb", STATE).split()[0]) + _ROOM_BYTES
    scene.run(SERVER, "cp", "-a", STATE, "/run/state-copy")
    scene.run(SERVER, "mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "full", STATE)
    scene.run(SERVER, "sh", "-c", f"cp -a /run/state-copy/. {STATE}/ && rm -rf /run/state-copy")
    scene.start(f"agent/{SERVER}")


def full(scene: Scene) -> str:
    """Fill the disk to the last byte, kill the agent, and let the next one live with it; then make room."""
    scene.space(SERVER).run(["dd", "if=/dev/zero", f"of={STATE}/fill", "bs=4k"])
    left = scene.run(SERVER, "sh", "-c", f"df --output=avail -B1 {STATE} | tail -1").strip()
    if left != "0":
        raise PromiseBrokenError(f"the disk is not full: {left} bytes are left")
    scene.kill(f"agent/{SERVER}")
    agent.start(scene.layout, scene.facts, SERVER)
    said = eventually(lambda: _named(scene), "the agent says that the disk is full", _UP_S)
    if not scene.calls("shop", 8301):
        raise PromiseBrokenError("a call fails while the disk is full")
    scene.run(SERVER, "rm", f"{STATE}/fill")
    scene.start(f"agent/{SERVER}")
    began_s = time.monotonic()
    eventually(lambda: scene.healthy(SERVER), "the agent is well again", 60)
    return f"said: {said}; well {time.monotonic() - began_s:.1f} s after there is room"


def _named(scene: Scene) -> str:
    words = ("disk.full", "No space left")
    problems = scene.agent(SERVER).get("problems", [])
    return next((each for each in problems if any(word in each for word in words)), "")


def state_files(scene: Scene) -> list[str]:
    """The agent's and its Envoy's state, relative to the state directory."""
    root = scene.upper(SERVER, STATE)
    files = (each for each in sorted(root.rglob("*")) if each.is_file() and not each.is_symlink())
    return [str(each.relative_to(root)) for each in files if not any(word in f"/{each}" for word in _SPARED)]


def _truncated(scene: Scene, file: Path) -> None:
    size = file.stat().st_size
    with file.open("r+b") as content:
        content.truncate(scene.random.randrange(size) if size else 0)


def _garbled(scene: Scene, file: Path) -> None:
    size = max(1, file.stat().st_size)
    with file.open("r+b") as content:
        content.write(scene.random.randbytes(size))


def _damaged(damage: Callable[[Scene, Path], None]) -> Callable[[Scene], str]:
    def play(scene: Scene) -> str:
        healed: list[str] = []
        named: list[str] = []
        for name in state_files(scene):
            file = scene.upper(SERVER, f"{STATE}/{name}")
            if not file.exists():
                continue
            agent.stop(scene.layout, SERVER, signal.SIGKILL)
            kept = scene.folder / "kept"
            shutil.copy2(file, kept)
            damage(scene, file)
            (healed if _starts(scene, name, kept, file) else named).append(name)
        if not healed:
            raise PromiseBrokenError("no file was damaged")
        return (
            f"{len(healed)} files made anew by themselves; {len(named)} named to the owner: {', '.join(named) or '-'}"
        )

    return play


def _starts(scene: Scene, name: str, kept: Path, file: Path) -> bool:
    """Whether the agent becomes well with the damaged file; where it does not it names it, and the old file cures."""
    written = len(scene.log(SERVER))
    agent.start(scene.layout, scene.facts, SERVER)
    eventually(
        lambda: scene.healthy(SERVER) or _refused(scene, name, written), f"{name}: it is well, or says why not", 30
    )
    if scene.healthy(SERVER):
        return True
    agent.stop(scene.layout, SERVER, signal.SIGKILL)
    shutil.copy2(kept, file)
    scene.start(f"agent/{SERVER}")
    eventually(lambda: scene.healthy(SERVER), f"{name}: the old file cures it", 30)
    return False


def _refused(scene: Scene, name: str, written: int) -> bool:
    said = " ".join(scene.agent(SERVER).get("problems", [])) + scene.log(SERVER)[written:]
    return name.rsplit("/", 1)[-1] in said and not agent.processes(scene.layout, SERVER)


STATES: Final = (
    Fault(
        "disk-full",
        "the disk of the callee's agent is filled to the last byte, its agent killed and started, then room made",
        "What runs goes on, no call fails; the alarm says that the disk is full; with room all is well by itself.",
        full,
        prepare=on_a_disk_of_its_own,
        last=True,
    ),
    Fault(
        "state-truncated",
        "each state file of the callee's agent is cut off at a random byte, one after the other, and the agent started",
        "No call fails; what can be had again is made anew, what cannot is named and nothing else is touched.",
        _damaged(_truncated),
    ),
    Fault(
        "state-corrupt",
        "each state file of the callee's agent is overwritten with random bytes, and the agent started",
        "No call fails; what can be had again is made anew, what cannot is named and nothing else is touched.",
        _damaged(_garbled),
    ),
)
