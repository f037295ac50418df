"""What a connection from a host would meet on its way, and why: read from the very resources that its Envoy is sent.

    call         what is explained: who calls what, and how
    story        the answer: steps, each with its reason
    sight        the resources of one host as messages
    chains       which filter chain of a listener takes a connection, as Envoy chooses
    routing      which route of a virtual host takes a request
    outbound     the way from the program to an endpoint; destination: its clusters and endpoints
    inbound      the way from there to the program that is called

    attempt      what policies look at; rbac: whether rules hold for it, as Envoy judges; authorization: what the
                 filters of a chain make of it; paths: how Envoy writes a path before
    arriving     the chain of an attempt on a host, and its verdict
    permission   who may do what: `hostmesh authz explain`

Pure: the mesh in, a story out.
"""

from hostmesh_controller.explain.call import Call, parse_call
from hostmesh_controller.explain.outbound import explain
from hostmesh_controller.explain.story import Step, Story

__all__ = ["Call", "Step", "Story", "explain", "parse_call"]
