"""What a connection from a host would meet on its way, and why: read from the very resources that its Envoy is sent.

    call         what is explained: who calls what, and how
    story        the answer: steps, each with its reason
    sight        the resources of one host as messages
    chains       which filter chain of a listener takes a connection, as Envoy chooses
    routing      which route of a virtual host takes a request
    outbound     the way from the program to an endpoint; destination: its clusters and endpoints
    inbound      the way from there to the program that is called

Pure: the mesh in, a story out.
"""

from hostmesh_controller.explain.call import Call, parse_call
from hostmesh_controller.explain.outbound import explain
from hostmesh_controller.explain.story import Step, Story

__all__ = ["Call", "Step", "Story", "explain", "parse_call"]
