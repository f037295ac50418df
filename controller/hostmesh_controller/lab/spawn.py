"""Starting the programs of `inside`: how their command lines look, and the channel back."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import hostmesh_controller
from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.inside.channel import Channel, pair
from hostmesh_controller.lab.process import ProcessRecord

PROGRAMS: Final = "/run/hostmesh-lab/bin"
"""Where a host finds hostmesh-agent and the rest; last on PATH, so that the system's own python3 comes first."""
PATH: Final = f"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{PROGRAMS}"
_BOOT: Final = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from hostmesh_controller.lab.inside.{0} import main; main()"
)
_START_S: Final = 20.0


def inside_command(program: str, *arguments: str) -> list[str]:
    """Command line of a program of `inside`."""
    root = Path(hostmesh_controller.__file__).parent.parent
    return [sys.executable, "-I", "-S", "-c", _BOOT.format(program), str(root), *arguments]


@dataclass(frozen=True, slots=True)
class Started:
    """A namespace's process 1 that waits for the word to stay: record it, then give that word."""

    record: ProcessRecord
    channel: Channel

    def stay(self) -> None:
        self.channel.send(go=True)
        self.channel.close()


def start_init(program: str, wish: dict[str, Any], what: str, log: Path, *, pass_fds: tuple[int, ...]) -> Started:
    """Start world or host, hand it its `wish`, and wait until its process 1 reports that it is ready.

    `what` names it for those who read the process list; its own last words, if any, go to `log`.

    Raises:
        LabError: in the words of the step that failed.
    """
    near, far = pair()
    with log.open("ab") as output:
        starter = subprocess.Popen(
            inside_command(program, str(far.fileno()), what),
            # Nothing of the caller's: who waits for the end of our output must not wait for the end of the lab.
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(far.fileno(), *pass_fds),
            start_new_session=True,
            env={"PATH": PATH, "LC_ALL": "C.UTF-8"},
            cwd="/",
        )
    far.close()
    near.set_timeout(_START_S)
    near.send(**wish)
    try:
        while True:
            received = near.receive()
            if received is None:
                raise LabError(f"{what}: its first process ended without a word; see {log}")
            words, pid = received
            if "error" in words:
                raise LabError(f"{what}: {words['error']}")
            if words["step"] == "ready":
                return Started(ProcessRecord.of(pid), near)
            # The only other step: the world's user namespace, whose ids only a process outside it can map.
            map_ids(starter.pid)
            near.send(go=True)
    except TimeoutError:
        near.close()
        starter.kill()
        raise LabError(f"{what}: not ready within {_START_S:.0f} s") from None
    except BaseException:
        near.close()
        raise
    finally:
        starter.wait()


def map_ids(pid: int) -> None:
    """Give the user namespace of `pid` the user's own id as 0 and their subordinate ids from 1 on.

    Raises:
        LabError: no ranges, or the tools refuse; with the cure.
    """
    for tool, file, own in (("newuidmap", "/etc/subuid", os.getuid()), ("newgidmap", "/etc/subgid", os.getgid())):
        start, count = subordinate_ids(Path(file))
        try:
            done = subprocess.run(
                [tool, str(pid), "0", str(own), "1", "1", str(start), str(count)],
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise LabError(f"{tool} is missing; cure, as root: apt-get install uidmap") from None
        if done.returncode != 0:
            raise LabError(f"{tool} refused: {done.stderr.strip()}")


def subordinate_ids(file: Path) -> tuple[int, int]:
    """Return (first id, how many) of the user's largest range in /etc/subuid or /etc/subgid.

    Raises:
        LabError: none, or too small for the ids of an ordinary system (65,536).
    """
    import pwd

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    ranges = []
    if file.exists():
        for line in file.read_text().splitlines():
            fields = line.split(":")
            if len(fields) == 3 and fields[0] in (name, str(os.getuid())):
                ranges.append((int(fields[1]), int(fields[2])))
    best = max(ranges, key=lambda found: found[1], default=(0, 0))
    if best[1] < 65536:
        flag = "--add-subuids" if file.name == "subuid" else "--add-subgids"
        raise LabError(
            f"{file} gives {name} no range of 65536 ids, which a lab of an ordinary user needs;\n"
            f"cure, as root: usermod {flag} 100000-165535 {name}   (or run the lab as root)"
        )
    return best
