"""The controller's state on disk: objects, tokens, certificates, hosts, virtual addresses, audit.

records and protocol say what a store is; tables is the schema, migrations its history; sql does the work on any
database that SQLAlchemy speaks to; sqlite opens the embedded one:

    store = hostmesh_controller.store.sqlite.open_store(path)
"""

from hostmesh_controller.store.protocol import Store
from hostmesh_controller.store.records import (
    ApiTokenRecord,
    AuditRecord,
    CertificateRecord,
    Commit,
    Delete,
    Document,
    HostState,
    InstanceRecord,
    PendingRecord,
    Put,
    StoredObject,
    StoreError,
    TokenRecord,
)

__all__ = [
    "ApiTokenRecord",
    "AuditRecord",
    "CertificateRecord",
    "Commit",
    "Delete",
    "Document",
    "HostState",
    "InstanceRecord",
    "PendingRecord",
    "Put",
    "Store",
    "StoreError",
    "StoredObject",
    "TokenRecord",
]
