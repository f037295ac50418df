"""Envoy's own word on what it would be sent: everything one host can ask for, as one static bootstrap."""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pki
from golden.live import envoy_binary
from hostmesh_agent.bootstrap import runtime
from hostmesh_agent.certs import roots_sds, svid_sds
from hostmesh_api import wire
from hostmesh_api.identity import WorkloadIdentity

Resources = Mapping[str, Mapping[str, Any]]

_DIRECTORY: Final = re.compile(r'"path": "(certs/[^"/]+)"')
_FILE: Final = re.compile(r'"filename": "(/[^"]+)"')
_MANAGER: Final = (
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)
_ROUTER: Final = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
_FAULT: Final = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"


def validate(resources: Resources, directory: Path) -> str:
    """Return what Envoy says against the resources: nothing if it takes them."""
    document = json.dumps(_bootstrap(resources), sort_keys=True)
    document = _FILE.sub(r'"filename": "certs/roots/bundle.pem"', document)
    _certificates(directory, document)
    (directory / "bootstrap.json").write_text(document)
    done = subprocess.run(
        [envoy_binary(), "--mode", "validate", "-c", "bootstrap.json", "--log-level", "error"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def _bootstrap(resources: Resources) -> dict[str, Any]:
    relay = {
        "name": wire.RELAY_CLUSTER,
        "load_assignment": {
            "cluster_name": wire.RELAY_CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": "xds.sock"}}}}]}],
        },
    }
    listeners = [
        *resources["listener"].values(),
        *_routes(resources["virtualhost"]),
        *(_table(name, table) for name, table in resources.get("route", {}).items()),
    ]
    return {
        "node": {"id": "golden", "cluster": "hostmesh"},
        "layered_runtime": runtime(),
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": wire.RELAY_CLUSTER}}],
            }
        },
        "static_resources": {
            "clusters": [relay, *resources["cluster"].values(), *_assignments(resources["endpoint"])],
            "listeners": listeners,
        },
    }


def _assignments(endpoints: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each assignment as a cluster of its own, since it cannot be validated alone."""
    for name, assignment in endpoints.items():
        yield {"name": f"endpoints of {name}", "connect_timeout": "1s", "load_assignment": assignment}


def _routes(hosts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a listener with the virtual hosts of each port, since they cannot be validated alone."""
    for port in sorted({name.partition("/")[0] for name in hosts}):
        found = [host for name, host in hosts.items() if name.startswith(f"{port}/") and host is not None]
        yield _table(port, {"name": port, "virtual_hosts": found, "validate_clusters": False})


def _table(name: str, table: Any) -> dict[str, Any]:
    manager = {
        "@type": _MANAGER,
        "stat_prefix": "routes",
        "route_config": table,
        "http_filters": [
            {"name": "envoy.filters.http.fault", "typed_config": {"@type": _FAULT}},
            {"name": "envoy.filters.http.router", "typed_config": {"@type": _ROUTER}},
        ],
    }
    return {
        "name": f"routes of {name}",
        "address": {"pipe": {"path": f"routes-{name}.sock"}},
        "filter_chains": [{"filters": [{"name": "manager", "typed_config": manager}]}],
    }


def _certificates(directory: Path, document: str) -> None:
    authority = pki.new_authority(directory / "authority")
    own = pki.svid(authority, WorkloadIdentity("cluster.local", "default", "default"))
    for relative in {*_DIRECTORY.findall(document), wire.ROOTS}:
        files = directory / relative
        files.mkdir(parents=True, exist_ok=True)
        if relative == wire.ROOTS:
            (files / "bundle.pem").write_bytes(authority.bundle_pem)
            (files / "sds.json").write_bytes(roots_sds(relative))
        else:
            (files / "svid.pem").write_bytes(own.one_file)
            (files / "sds.json").write_bytes(svid_sds(relative))
