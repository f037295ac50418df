"""Where in a cloud the machine is: its metadata service is asked, only where the firmware says that there is one."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from hostmesh_api.v1.hostmesh_pb2 import Cloud

LINK: Final = "http://169.254.169.254"
"""Where all three answer, without a name to resolve."""
WITHIN_S: Final = 2.0
RETRY_S: Final = 600.0
"""Nothing of it changes while the machine runs: it is asked until it has answered once."""
MAX_CHARS: Final = 128

Ask = Callable[[str, str, Mapping[str, str]], bytes]
"""Method, path, headers; raises OSError."""

log = structlog.get_logger(__name__)


class Whereabouts:
    """Asks until there is an answer, or until cancelled. `provider` is aws, gcp, azure, or "" for none."""

    def __init__(self, provider: str, changed: Callable[[], None], base: str = LINK, retry_s: float = RETRY_S) -> None:
        self._provider = provider
        self._changed = changed
        self._base = base
        self._retry_s = retry_s
        self.cloud: Cloud | None = None

    async def run(self) -> None:
        while self._provider and self.cloud is None:
            try:
                self.cloud = await asyncio.to_thread(look, self._provider, self._asked)
                self._changed()
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.info("the cloud's metadata service does not tell", cloud=self._provider, error=str(error))
                await asyncio.sleep(self._retry_s)
        # The other parts of the agent run for ever: one that ends would be taken for broken.
        await asyncio.Event().wait()

    def _asked(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        # http.client takes 2 MB, which hosts outside clouds do not pay.
        from hostmesh_agent.evidence import EvidenceError, ask

        try:
            return ask(self._base, method, path, headers, WITHIN_S)
        except EvidenceError as error:
            raise OSError(str(error)) from error


def look(provider: str, ask: Ask) -> Cloud:
    """Return where the machine is.

    Raises:
        OSError: nobody answers.
        ValueError, KeyError, TypeError: the answer makes no sense.
    """
    return _WAYS[provider](ask)


def _aws(ask: Ask) -> Cloud:
    token = ask("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}).decode("ascii").strip()
    session = {"X-aws-ec2-metadata-token": token}
    found = json.loads(ask("GET", "/latest/dynamic/instance-identity/document", session))
    names = ("region", "availabilityZone", "instanceId", "instanceType")
    return _cloud("aws", *(found[name] for name in names))


def _gcp(ask: Ask) -> Cloud:
    def told(name: str) -> str:
        path = f"/computeMetadata/v1/instance/{name}"
        return ask("GET", path, {"Metadata-Flavor": "Google"}).decode("ascii").strip().rpartition("/")[2]

    zone = told("zone")
    return _cloud("gcp", zone.rpartition("-")[0], zone, told("id"), told("machine-type"))


def _azure(ask: Ask) -> Cloud:
    found = json.loads(ask("GET", "/metadata/instance/compute?api-version=2021-02-01", {"Metadata": "true"}))
    region, number = found["location"], found.get("zone", "")
    # Zones of Azure are numbers within a region; elsewhere zones have names of their own.
    return _cloud("azure", region, f"{region}-{number}" if number else "", found["vmId"], found["vmSize"])


def _cloud(provider: str, region: Any, zone: Any, instance: Any, kind: Any) -> Cloud:
    region, zone, instance, kind = (str(each)[:MAX_CHARS] for each in (region, zone, instance, kind))
    return Cloud(provider=provider, region=region, zone=zone, instance_id=instance, instance_type=kind)


_WAYS: Final[Mapping[str, Callable[[Ask], Cloud]]] = {"aws": _aws, "gcp": _gcp, "azure": _azure}
