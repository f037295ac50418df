"""Kills at every step: played by tests of the kernel's rules and of files, which stop a process at each one."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from faults.fault import Fault, PromiseBrokenError
from faults.scene import Scene

_REPOSITORY: Final = Path(__file__).parents[3]
_WITHIN_S: Final = 600.0


def by_tests(*paths: str) -> Callable[[Scene], str]:
    """Run tests of the repository; each must pass, and none may be skipped."""

    def play(scene: Scene) -> str:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
        done = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, timeout=_WITHIN_S)
        last = done.stdout.strip().rpartition("\n")[2]
        passed = re.search(r"(\d+) passed", last)
        if done.returncode or passed is None or "skipped" in last:
            raise PromiseBrokenError(f"{' '.join(paths)}: {last}")
        return f"{passed[1]} tests passed: {', '.join(f'`{each}`' for each in paths)}"

    return play


EXHAUSTIVE: Final = (
    Fault(
        "killed-each-netlink-message",
        "SIGKILL after every single netlink message of changes of the rules: first ones, other ports, tproxy, the "
        "second Envoy and its door, failure mode open, identities of programs, there and back; and of the link of "
        "systemd-resolved's (in network namespaces of its own)",
        "Rules, routes and addresses are all there or not there; what is in force is what was, or what was wanted.",
        by_tests("tests/netns/test_capture_killed.py"),
    ),
    Fault(
        "killed-each-file-step",
        "a power cut before every single system call that writes: the agent's identity, configuration, certificates, "
        "closed ports, controllers, cold copy, holds of capture, resolv.conf, updates, the Envoy that serves; "
        "an Envoy's start; the upgrader's floors, and what it puts back",
        "All of it is whole: what was, or what was wanted; of the cold copy's newest page, also none.",
        by_tests("tests/unit/test_agent_power_cut.py", "tests/unit/test_agent_power_cut_more.py"),
    ),
    Fault(
        "capture-trial",
        "a change of capture that does harm, its agent killed during the trial (in network namespaces of its own)",
        "It undoes itself in time, whoever is dead; SSH answers afterwards.",
        by_tests("tests/netns/test_capture_deadman.py", "tests/netns/test_capture_trial.py"),
    ),
)
