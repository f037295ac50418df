"""Where it is written down which of the two Envoys serves, and how far a change of them is."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import structlog

from hostmesh_agent import process
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.places import BLUE, GREEN, Instance
from hostmesh_agent.state import StateError, read_private, write_private
from hostmesh_agent.upgrade import Life, Refused, Stage

FILE: Final = "envoy-life.json"

log = structlog.get_logger(__name__)


def read(state_dir: Path) -> Life:
    """Return what is written down; the first Envoy serves where nothing is. What cannot be read, processes tell."""
    try:
        return _life(json.loads(read_private(state_dir / FILE)))
    except FileNotFoundError:
        return Life()
    except (StateError, ValueError, KeyError, TypeError, RecursionError) as error:
        found = _of_processes(state_dir)
        log.error("which envoy serves is told by those that run", reason=str(error), active=found.active.value)
        return found


def write(state_dir: Path, life: Life) -> None:
    """Write it down. Raises OSError: nothing of it must be done."""
    write_private(state_dir / FILE, json.dumps(dataclasses.asdict(life), indent=1).encode() + b"\n")


def _of_processes(state_dir: Path) -> Life:
    """Return what the Envoys that run say: rules that lead to the second one must not be turned to nobody."""
    blue, green = (process.recorded_runs(AgentConfig(state_dir=state_dir).directory_of(each)) for each in (BLUE, GREEN))
    return Life(active=GREEN if green and not blue else BLUE)


def active_directory(config: AgentConfig) -> Path:
    """Return the working directory of the Envoy that serves, for whoever comes without an agent."""
    return config.directory_of(read(config.state_dir).active)


def _life(document: Mapping[str, Any]) -> Life:
    return Life(
        stage=Stage(document["stage"]),
        active=Instance(document["active"]),
        trying=str(document["trying"]),
        hung=document["hung"] is True,
        refused=tuple(Refused(str(each["fingerprint"]), str(each["why"])) for each in document["refused"]),
        asked=document.get("asked") is True,  # an agent before this one did not write it
    )
