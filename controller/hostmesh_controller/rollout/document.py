"""Progress as JSON: what the store keeps."""

import json
from dataclasses import asdict
from typing import Any

from hostmesh_controller.rollout.progress import Mark, Progress, Stage, Touched


def write(progress: Progress) -> str:
    """Return the whole of it."""
    return json.dumps(asdict(progress), sort_keys=True)


def read(text: str) -> Progress:
    """Return what `write` wrote."""
    said: dict[str, Any] = json.loads(text)
    hosts = {
        host: Touched(**{**each, "mark": Mark(each["mark"]), "refused": tuple(each.get("refused", ()))})
        for host, each in said.pop("hosts").items()
    }
    return Progress(**{**said, "stage": Stage(said["stage"])}, hosts=hosts)
