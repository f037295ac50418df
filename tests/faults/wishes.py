"""What operators write of a mesh, drawn at random: each step leads from one set of objects to another one that may be.

`shop` is behind two hosts or one of them, `solo` behind one that never changes. No step asks for something by which
calls fail in Istio, too: a service without endpoints, a route to a subset that nobody is in, callers whom a policy does
not allow, plaintext to a port that is STRICT.
"""

import base64
import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from random import Random
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa

from hostmesh_controller.workload_annotations import PROBES

HTTP_PORT: Final = 8301
GRPC_PORT: Final = 8302
TCP_PORT: Final = 8303
SOLO_HTTP_PORT: Final = 8305
SOLO_GRPC_PORT: Final = 8306
SOLO_TCP_PORT: Final = 8307
WELL: Final = "/run/hm-well"
"""The probe of `shop-twin` looks for this file."""
_SUBSETS: Final = ("v1", "v2")
_ACCOUNTS: Final = ("one", "two", "three")
Key = tuple[str, str, str]
"""Kind, namespace and name."""
Wish = dict[Key, dict[str, Any]]
Step = Callable[[Random, Wish], str]
"""Changes the wish in place and says what it did; "" is nothing."""

_VERSIONS: Final = {
    "Service": "v1",
    "WorkloadEntry": "networking.istio.io/v1",
    "DestinationRule": "networking.istio.io/v1",
    "VirtualService": "networking.istio.io/v1",
    "ServiceEntry": "networking.istio.io/v1",
    "Sidecar": "networking.istio.io/v1",
    "PeerAuthentication": "security.istio.io/v1",
    "AuthorizationPolicy": "security.istio.io/v1",
    "RequestAuthentication": "security.istio.io/v1",
    "CapturePolicy": "hostmesh.io/v1",
    "HealthCheck": "hostmesh.io/v1",
    "RateLimit": "hostmesh.io/v1",
    "MeshConfig": "hostmesh.io/v1",
}
ROOT: Final = "istio-system"


def put(wish: Wish, kind: str, name: str, spec: dict[str, Any], namespace: str = "default") -> str:
    meta = {"name": name, "namespace": namespace} if namespace else {"name": name}
    wish[kind, namespace, name] = {"apiVersion": _VERSIONS[kind], "kind": kind, "metadata": meta, "spec": spec}
    return f"{kind} {namespace}/{name}: {spec}"


def drop(wish: Wish, kind: str, name: str, namespace: str = "default") -> str:
    return f"no {kind} {namespace}/{name}" if wish.pop((kind, namespace, name), None) else ""


def first(addresses: Mapping[str, str]) -> Wish:
    """The mesh with which each run begins and ends."""
    wish: Wish = {}
    put(wish, "PeerAuthentication", "default", {"mtls": {"mode": "STRICT"}}, ROOT)
    for service, ports in (("shop", (HTTP_PORT, GRPC_PORT, TCP_PORT)), ("solo", _SOLO_PORTS)):
        put(wish, "Service", service, {"selector": {"app": service}, "ports": _ports(ports)})
    for name, host, app, version in (
        ("server", "server", "shop", "v1"),
        ("shop-twin", "twin", "shop", "v2"),
        ("solo", "server", "solo", "v1"),
    ):
        labels = {"app": app, "version": version}
        put(wish, "WorkloadEntry", name, {"address": addresses[host], "serviceAccount": "one", "labels": labels})
    return wish


_SOLO_PORTS: Final = (SOLO_HTTP_PORT, SOLO_GRPC_PORT, SOLO_TCP_PORT)


def _ports(numbers: tuple[int, int, int]) -> list[dict[str, Any]]:
    return [{"name": name, "port": port} for name, port in zip(("http", "grpc", "tcp"), numbers, strict=True)]


def spec(wish: Wish, kind: str, name: str, namespace: str = "default") -> dict[str, Any]:
    found: dict[str, Any] = wish[kind, namespace, name]["spec"]
    return found


# --- what may be ---------------------------------------------------------------------------------------------------


def members(wish: Wish, app: str, version: str = "") -> set[str]:
    """The WorkloadEntries behind a service, or behind a subset of it."""
    found = set()
    for (kind, _, name), document in wish.items():
        if kind == "WorkloadEntry":
            labels = document["spec"]["labels"]
            if labels["app"] == app and version in ("", labels["version"]):
                found.add(name)
    return found


def subsets_called(wish: Wish) -> Iterator[str]:
    for (kind, _, _), document in wish.items():
        if kind == "VirtualService":
            for way in ("http", "tcp"):
                for route in document["spec"].get(way, ()):
                    yield from (
                        each["destination"]["subset"] for each in route["route"] if "subset" in each["destination"]
                    )


def subsets_declared(wish: Wish) -> set[str]:
    rule = wish.get(("DestinationRule", "default", "shop"))
    return {each["name"] for each in rule["spec"].get("subsets", ())} if rule else set()


def may_be(old: Wish, new: Wish, well: Collection[str]) -> bool:
    """Tell whether calls go on, in Istio's sense, while one becomes the other. `well` can be called now."""
    if not members(old, "shop") & members(new, "shop") & set(well):
        return False
    # What is written comes before what is deleted: there is a moment with both.
    between = {**old, **new}
    for wish in (between, new):
        if not set(subsets_called(wish)) <= subsets_declared(wish):
            return False
        for subset in set(subsets_called(wish)):
            kept = members(wish, "shop", subset) & set(well)
            if not kept or (subset in subsets_called(old) and not members(old, "shop", subset)):
                return False
    return True


# --- steps ---------------------------------------------------------------------------------------------------------


def _extra_service(random: Random, wish: Wish) -> str:
    name = f"extra-{random.randrange(3)}"
    if ("Service", "default", name) in wish and random.random() < 0.7:
        return drop(wish, "Service", name)
    app = random.choice(("shop", "solo"))
    known = (HTTP_PORT, GRPC_PORT, TCP_PORT) if app == "shop" else _SOLO_PORTS
    words = ("http", "grpc", "tcp")
    which = random.randrange(3)
    port: dict[str, Any] = {"name": words[which]}
    kind = random.randrange(3)
    if kind == 0:
        port |= {"port": known[which]}
    elif kind == 1:
        port |= {"port": 8400 + random.randrange(5), "targetPort": known[which]}
    else:
        port |= {"port": 8390 + random.randrange(5)}
    return put(wish, "Service", name, {"selector": {"app": app}, "ports": [port]})


def _more_ports(random: Random, wish: Wish) -> str:
    app = random.choice(("shop", "solo"))
    known = (HTTP_PORT, GRPC_PORT, TCP_PORT) if app == "shop" else _SOLO_PORTS
    ports = _ports(known)
    which = random.randrange(3)
    kind = random.randrange(4)
    name = ("http", "grpc", "tcp")[which] + "-more"
    if kind == 0:
        ports.append({"name": name, "port": 8411, "targetPort": known[which]})
    elif kind == 1:
        ports.append({"name": name, "port": 8412, "targetPort": "named"})
    elif kind == 2:
        ports.append({"name": name, "port": 8413})
    return put(wish, "Service", app, {"selector": {"app": app}, "ports": ports})


def _entry_ports(random: Random, wish: Wish) -> str:
    names = [name for kind, _, name in wish if kind == "WorkloadEntry"]
    entry = copy.deepcopy(spec(wish, "WorkloadEntry", name := random.choice(names)))
    if "ports" in entry:
        del entry["ports"]
    else:
        entry["ports"] = {"named": random.choice((8414, 8415))}
    return put(wish, "WorkloadEntry", name, entry)


def _labels(random: Random, wish: Wish) -> str:
    name = random.choice(("server", "shop-twin", "solo"))
    if ("WorkloadEntry", "default", name) not in wish:
        return ""
    entry = copy.deepcopy(spec(wish, "WorkloadEntry", name))
    what = random.randrange(3)
    if what == 0 and name != "solo":
        entry["labels"]["app"] = random.choice(("shop", "shop", "elsewhere"))
    elif what == 1:
        entry["labels"]["version"] = random.choice(_SUBSETS)
    else:
        entry["labels"]["more"] = str(random.randrange(3))
    return put(wish, "WorkloadEntry", name, entry)


def _account(random: Random, wish: Wish) -> str:
    name = random.choice(("server", "shop-twin", "solo"))
    if ("WorkloadEntry", "default", name) not in wish:
        return ""
    entry = copy.deepcopy(spec(wish, "WorkloadEntry", name))
    entry["serviceAccount"] = random.choice(_ACCOUNTS)
    return put(wish, "WorkloadEntry", name, entry)


def _entry(random: Random, wish: Wish) -> str:
    """One of the two behind `shop` goes, or comes back."""
    name = random.choice(("server", "shop-twin"))
    kept = ("WorkloadEntry", "default", name)
    if kept in wish:
        # What comes back is what was there: remembered in an object that is never written.
        _GONE[name] = copy.deepcopy(wish[kept])
        return drop(wish, "WorkloadEntry", name)
    wish[kept] = copy.deepcopy(_GONE[name])
    return f"WorkloadEntry {name} is back"


_GONE: Final[dict[str, dict[str, Any]]] = {}


def _weight(random: Random, wish: Wish) -> str:
    name = random.choice(("server", "shop-twin", "solo"))
    if ("WorkloadEntry", "default", name) not in wish:
        return ""
    entry = copy.deepcopy(spec(wish, "WorkloadEntry", name))
    entry["weight"] = random.randrange(1, 5)
    if random.random() < 0.5:
        entry["locality"] = random.choice(("r1/z1", "r1/z2", "r2/z1"))
    return put(wish, "WorkloadEntry", name, entry)


def _rule(random: Random, wish: Wish) -> str:
    host = random.choice(("shop", "shop", "solo"))
    if random.random() < 0.25:
        return drop(wish, "DestinationRule", host)
    policy: dict[str, Any] = {}
    if random.random() < 0.6:
        policy["connectionPool"] = {
            "tcp": {"maxConnections": random.randrange(1000, 2000), "connectTimeout": f"{random.randrange(5, 10)}s"},
            "http": {"http2MaxRequests": random.randrange(1000, 2000)},
        }
    if random.random() < 0.2:
        policy.setdefault("connectionPool", {}).setdefault("http", {})["maxRequestsPerConnection"] = 50
    if random.random() < 0.3:
        policy["tls"] = {"mode": "ISTIO_MUTUAL"}
    if random.random() < 0.5:
        policy["loadBalancer"] = {"simple": random.choice(("ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"))}
    found: dict[str, Any] = {"host": host}
    if policy:
        found["trafficPolicy"] = policy
    if host == "shop" and random.random() < 0.8:
        found["subsets"] = [{"name": each, "labels": {"version": each}} for each in _SUBSETS]
    return put(wish, "DestinationRule", host, found)


def _routes(random: Random, wish: Wish) -> str:
    host = random.choice(("shop", "shop", "solo"))
    if ("VirtualService", "default", host) in wish and random.random() < 0.3:
        return drop(wish, "VirtualService", host)

    def split(numbers: tuple[int, ...]) -> list[dict[str, Any]]:
        ways: list[dict[str, Any]] = [{"host": host}]
        if host == "shop":
            ways += [{"host": host, "subset": each} for each in _SUBSETS]
        chosen = random.sample(ways, random.randrange(1, len(ways) + 1))
        if numbers:
            chosen = [{**each, "port": {"number": numbers[0]}} for each in chosen]
        share = 100 // len(chosen)
        weights = [share] * len(chosen)
        weights[0] += 100 - share * len(chosen)
        return [{"destination": each, "weight": weight} for each, weight in zip(chosen, weights, strict=True)]

    found: dict[str, Any] = {"hosts": [host], "http": [{"route": split(())}]}
    if random.random() < 0.3:
        found["http"][0]["timeout"] = "10s"
    if random.random() < 0.3:
        found["http"][0]["headers"] = {"request": {"set": {"x-way": str(random.randrange(9))}}}
    if random.random() < 0.5:
        port = TCP_PORT if host == "shop" else SOLO_TCP_PORT
        found["tcp"] = [{"match": [{"port": port}], "route": split((port,))}]
    if host == "shop" and random.random() < 0.5:
        # Both at once, as one file has them.
        subsets = [{"name": each, "labels": {"version": each}} for each in _SUBSETS]
        put(wish, "DestinationRule", host, {"host": host, "subsets": subsets})
    return put(wish, "VirtualService", host, found)


def _no_rules(random: Random, wish: Wish) -> str:
    said = [drop(wish, "VirtualService", "shop"), drop(wish, "DestinationRule", "shop")]
    return ", ".join(filter(None, said))


def _mutual(random: Random, wish: Wish) -> str:
    mode = {"mode": random.choice(("STRICT", "PERMISSIVE"))}
    where = random.randrange(4)
    if where == 0:
        return put(wish, "PeerAuthentication", "default", {"mtls": mode}, ROOT)
    if where == 1:
        if random.random() < 0.4:
            return drop(wish, "PeerAuthentication", "default")
        return put(wish, "PeerAuthentication", "default", {"mtls": mode})
    app = random.choice(("shop", "solo"))
    if random.random() < 0.4:
        return drop(wish, "PeerAuthentication", app)
    found: dict[str, Any] = {"selector": {"matchLabels": {"app": app}}, "mtls": mode}
    if where == 3:
        ports = (HTTP_PORT, GRPC_PORT, TCP_PORT) if app == "shop" else _SOLO_PORTS
        found["portLevelMtls"] = {str(random.choice(ports)): {"mode": random.choice(("STRICT", "PERMISSIVE"))}}
    return put(wish, "PeerAuthentication", app, found)


def _allowed(random: Random, wish: Wish) -> str:
    name = f"allow-{random.randrange(2)}"
    if ("AuthorizationPolicy", "default", name) in wish and random.random() < 0.5:
        return drop(wish, "AuthorizationPolicy", name)
    rule: dict[str, Any] = random.choice(
        (
            {"from": [{"source": {"principals": ["*"]}}]},
            {"from": [{"source": {"notPrincipals": ["cluster.local/ns/default/sa/nobody"]}}]},
            {},
        )
    )
    action = "ALLOW"
    if random.random() < 0.3:
        action, rule = "DENY", {"from": [{"source": {"principals": ["cluster.local/ns/default/sa/nobody"]}}]}
    elif random.random() < 0.2:
        action, rule = "DENY", {"from": [{"source": {"notPrincipals": ["*"]}}]}
    found: dict[str, Any] = {"action": action, "rules": [rule]}
    if random.random() < 0.5:
        found["selector"] = {"matchLabels": {"app": random.choice(("shop", "solo"))}}
    return put(wish, "AuthorizationPolicy", name, found)


def _tokens(random: Random, wish: Wish) -> str:
    if ("RequestAuthentication", "default", "users") in wish:
        return drop(wish, "RequestAuthentication", "users")
    rule = {"issuer": "https://issuer.example", "jwks": _JWKS}
    return put(wish, "RequestAuthentication", "users", {"jwtRules": [rule]})


def _jwks() -> str:
    numbers = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
    n = base64.urlsafe_b64encode(numbers.n.to_bytes(256)).rstrip(b"=").decode()
    return f'{{"keys": [{{"kty": "RSA", "kid": "a", "alg": "RS256", "e": "AQAB", "n": "{n}"}}]}}'


_JWKS: Final = _jwks()


def _sidecar(random: Random, wish: Wish) -> str:
    if ("Sidecar", "default", "default") in wish and random.random() < 0.5:
        return drop(wish, "Sidecar", "default")
    hosts = random.choice(
        (
            ["./*", f"{ROOT}/*"],
            ["*/*"],
            [f"default/{each}.default.svc.cluster.local" for each in ("shop", "solo", "pair")],
        )
    )
    return put(wish, "Sidecar", "default", {"egress": [{"hosts": hosts}]})


def _capture(random: Random, wish: Wish) -> str:
    if ("CapturePolicy", ROOT, "some") in wish and random.random() < 0.6:
        return drop(wish, "CapturePolicy", "some", ROOT)
    found: dict[str, Any] = {"scope": random.choice(("mesh", "all"))}
    if random.random() < 0.5:
        found["inbound"] = {"exclude": [{"ports": [random.choice((9999, 8390))]}]}
    if random.random() < 0.5:
        found["outbound"] = {"exclude": [{"ports": [9999]}]}
    return put(wish, "CapturePolicy", "some", found, ROOT)


def _foreign(random: Random, wish: Wish) -> str:
    name = f"se-{random.randrange(2)}"
    if ("ServiceEntry", "default", name) in wish and random.random() < 0.6:
        return drop(wish, "ServiceEntry", name)
    found: dict[str, Any] = {"hosts": [f"{name}.example.com"], "resolution": "STATIC"}
    if random.random() < 0.5:
        app = random.choice(("shop", "solo"))
        number = HTTP_PORT if app == "shop" else SOLO_HTTP_PORT
        found["location"] = "MESH_INTERNAL"
        found["workloadSelector"] = {"labels": {"app": app}}
        found["ports"] = [{"number": number, "name": "http", "protocol": "HTTP"}]
    else:
        found["location"] = "MESH_EXTERNAL"
        found["endpoints"] = [{"address": "192.0.2.7"}]
        found["ports"] = [{"number": random.choice((HTTP_PORT, 8443)), "name": "http", "protocol": "HTTP"}]
    return put(wish, "ServiceEntry", name, found)


def _health(random: Random, wish: Wish) -> str:
    host = random.choice(("shop", "solo"))
    if ("HealthCheck", "default", host) in wish and random.random() < 0.6:
        return drop(wish, "HealthCheck", host)
    found: dict[str, Any] = {"host": host, "tcp": {}, "interval": "2s", "timeout": "2s"}
    if random.random() < 0.5:
        found["ports"] = [HTTP_PORT if host == "shop" else SOLO_HTTP_PORT]
        del found["tcp"]
        found["http"] = {"path": "/"}
    return put(wish, "HealthCheck", host, found)


def _limit(random: Random, wish: Wish) -> str:
    app = random.choice(("shop", "solo"))
    if ("RateLimit", "default", app) in wish and random.random() < 0.6:
        return drop(wish, "RateLimit", app)
    rule = {"name": "high", "limit": {"requests": random.randrange(10_000, 20_000), "per": "1s"}}
    return put(wish, "RateLimit", app, {"selector": {"matchLabels": {"app": app}}, "rules": [rule]})


def _settings(random: Random, wish: Wish) -> str:
    if ("MeshConfig", "", "default") in wish and random.random() < 0.6:
        return drop(wish, "MeshConfig", "default", "")
    found: dict[str, Any] = {}
    if random.random() < 0.5:
        found["accessLogFile"] = random.choice(("/dev/null", ""))
    if random.random() < 0.5:
        found["connectTimeout"] = f"{random.randrange(5, 15)}s"
    return put(wish, "MeshConfig", "default", found, "")


def _probe(random: Random, wish: Wish) -> str:
    kept = ("WorkloadEntry", "default", "shop-twin")
    if kept not in wish:
        return ""
    document = copy.deepcopy(wish[kept])
    if document["metadata"].pop("annotations", None) is None:
        probe = "{periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 5, exec: {command: [test, -e, " + WELL + "]}}"
        document["metadata"]["annotations"] = {PROBES: probe}
    wish[kept] = document
    return f"shop-twin: {document['metadata'].get('annotations', 'no probe')}"


STEPS: Final[Mapping[str, Step]] = {
    "extra-service": _extra_service,
    "more-ports": _more_ports,
    "entry-ports": _entry_ports,
    "labels": _labels,
    "account": _account,
    "entry": _entry,
    "weight": _weight,
    "rule": _rule,
    "routes": _routes,
    "no-rules": _no_rules,
    "mutual": _mutual,
    "allowed": _allowed,
    "tokens": _tokens,
    "sidecar": _sidecar,
    "capture": _capture,
    "foreign": _foreign,
    "health": _health,
    "limit": _limit,
    "settings": _settings,
    "probe": _probe,
}
