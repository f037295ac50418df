"""Who talks to whom."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query

from hostmesh_controller.api.bodies import moment
from hostmesh_controller.api.parts import Using
from hostmesh_controller.api.principals import Principal, Viewer
from hostmesh_controller.graph import Edge, Listening, Node, graph
from hostmesh_controller.reports import report_of
from hostmesh_controller.store import HostState, plain

router = APIRouter(prefix="/v1", tags=["observed calls"])


@router.get("/graph")
async def show_graph(
    parts: Using,
    who: Viewer,
    namespace: Annotated[str, Query(max_length=63, description="Only what one end of is in this namespace.")] = "",
    host: Annotated[str, Query(max_length=253, description="Only what one end of is on this host.")] = "",
    since_s: Annotated[int, Query(ge=0, le=400 * 86_400, description="Only what was seen so lately; 0: all.")] = 0,
) -> dict[str, Any]:
    """The dependency map: connections that hosts see, captured or not, and calls that Envoy counts."""
    mesh, now = parts.registrar.mesh, parts.now()
    # Taken on the event loop, where reports change them.
    flows = tuple(parts.observations.flows.flows.values())
    calls = tuple(parts.observations.calls.values())
    states = {name: await parts.registrar.states.state(name) for name in sorted(mesh.hosts)}

    def body() -> dict[str, Any]:
        edges = [
            each
            for each in graph(mesh, flows, calls, _listening(states))
            if _seen_by(who, each)
            and (not namespace or namespace in {each.key.source.namespace, each.key.target.namespace})
            and (not host or host in each.hosts)
            and (not since_s or (now - each.last_seen).total_seconds() <= since_s)
        ]
        nodes = sorted({end for each in edges for end in each.key[:2]})
        return {"nodes": [_node_body(each) for each in nodes], "edges": [_edge_body(each) for each in edges]}

    return await asyncio.to_thread(body)


def _seen_by(who: Principal, edge: Edge) -> bool:
    """Tell whether a caller may know of an edge: as of calls, one with an end in a namespace that they read."""
    ends = (edge.key.source.namespace, edge.key.target.namespace)
    return who.namespaces is None or any(each and who.reads(each) for each in ends)


def _listening(states: Mapping[str, HostState]) -> dict[str, tuple[Listening, ...]]:
    return {
        host: tuple(
            Listening(each.port, plain(each.program, 64), plain(each.container or each.unit))
            for each in report_of(state).listening
        )
        for host, state in states.items()
    }


def _node_body(node: Node) -> dict[str, Any]:
    return {"id": node.id, "kind": node.kind.value, "namespace": node.namespace or None, "name": node.name}


def _edge_body(edge: Edge) -> dict[str, Any]:
    return {
        "source": edge.key.source.id,
        "target": edge.key.target.id,
        "port": edge.key.port,
        "protocol": edge.protocol,
        "security": sorted(edge.security),
        "connections": edge.connections,
        "calls": edge.calls,
        "denied": edge.denied,
        "hosts": sorted(edge.hosts),
        "first_seen": moment(edge.first_seen),
        "last_seen": moment(edge.last_seen),
    }
