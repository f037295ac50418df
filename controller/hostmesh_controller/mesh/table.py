"""The tables of the mesh; see `hostmesh_controller.table`."""

from hostmesh_controller.table import IndexEdit, Table

__all__ = ["IndexEdit", "Table"]
