"""A mesh for targets that need one: a host with a workload, a service, a route."""

from golden.objects import all_ready, mesh_of, obj
from hostmesh_controller.mesh import Mesh


def small_mesh() -> Mesh:
    labels = {"app": "a"}
    objects = [
        obj("Host", "one", {"addresses": ["10.0.0.1"]}),
        obj("WorkloadEntry", "w", {"address": "10.0.0.1", "labels": labels}),
        obj("Service", "s", {"selector": labels, "ports": [{"name": "http", "port": 80}, {"name": "tcp", "port": 90}]}),
        obj("VirtualService", "v", {"hosts": ["s"], "http": [{"route": [{"destination": {"host": "s"}}]}]}),
    ]
    return mesh_of(objects, all_ready(objects))
