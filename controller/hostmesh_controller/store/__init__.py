"""The controller's state on disk: objects, tokens, certificates, hosts, virtual addresses, audit.

records and protocol say what a store is; tables is the schema, migrations its history; sql does the work on any
database that SQLAlchemy speaks to, in transactions whose parts are objects (with their history), secrets (tokens,
certificates), runtime (hosts, virtual addresses, keys), enrolments, attested (hosts that wait) and observations; sqlite
opens the embedded one:

    store = hostmesh_controller.store.sqlite.open_store(path)
"""

from hostmesh_controller.store.protocol import Store
from hostmesh_controller.store.records import (
    Actor,
    ApiTokenRecord,
    AuditQuery,
    AuditRecord,
    CallKey,
    CallRecord,
    CertificateRecord,
    Commit,
    Delete,
    Denial,
    Document,
    EnrolmentRecord,
    FlowKey,
    FlowRecord,
    HostState,
    InstanceRecord,
    JwksRecord,
    Lineage,
    PendingRecord,
    PortKey,
    Put,
    RefusedWrite,
    RolloutRecord,
    StoredObject,
    StoreError,
    TokenRecord,
    WatchedPort,
    plain,
)

__all__ = [
    "Actor",
    "ApiTokenRecord",
    "AuditQuery",
    "AuditRecord",
    "CallKey",
    "CallRecord",
    "CertificateRecord",
    "Commit",
    "Delete",
    "Denial",
    "Document",
    "EnrolmentRecord",
    "FlowKey",
    "FlowRecord",
    "HostState",
    "InstanceRecord",
    "JwksRecord",
    "Lineage",
    "PendingRecord",
    "PortKey",
    "Put",
    "RefusedWrite",
    "RolloutRecord",
    "Store",
    "StoreError",
    "StoredObject",
    "TokenRecord",
    "WatchedPort",
    "plain",
]
