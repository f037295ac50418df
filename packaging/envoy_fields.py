"""Write where in Envoy's messages a path or a socket can be, for the agent, which does not load Envoy's messages.

The agent's floor (hostmesh_agent.policy_floor) walks over resources on the wire. What it has to know of each message is
which fields lead to something that names a file or a socket: this is read from the descriptors of xds-protos.

    python packaging/envoy_fields.py            write agent/hostmesh_agent/policy_floor/envoy_fields.json
    python packaging/envoy_fields.py --check    exit 1 if it is not what the descriptors say
"""

import argparse
import importlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

ROOT: Final = Path(__file__).resolve().parent.parent
TARGET: Final = ROOT / "agent/hostmesh_agent/policy_floor/envoy_fields.json"
PACKAGES: Final = ("envoy/", "xds/", "udpa/", "cel/", "google/api/expr/", "google/protobuf/")
_OLD: Final = re.compile(r"^envoy\.(api|admin|data|service)\.|\.v2(alpha\d*)?\.|^cel\.expr\.conformance\.")
"""Versions that Envoy no longer takes, and what is in no resource."""
STANDARD: Final = ("any", "duration", "empty", "struct", "timestamp", "wrappers")
"""Files of google/protobuf whose messages occur in resources."""

READ, WRITE, SECRETS, SOCKET, TARGET_URI = "read", "write", "secrets", "socket", "target"
SOURCE: Final = "source"
SOURCE_TYPE: Final = "envoy.config.core.v3.ApiConfigSource"
"""A source of configuration that is not the agent's stream."""
MAP: Final = "map"
LEAVES: Final = {
    "envoy.config.bootstrap.v3.Admin.access_log_path": WRITE,
    "envoy.config.bootstrap.v3.Admin.profile_path": WRITE,
    "envoy.config.bootstrap.v3.Bootstrap.flags_path": READ,
    "envoy.config.bootstrap.v3.Bootstrap.perf_tracing_file_path": WRITE,
    "envoy.config.bootstrap.v3.ClusterManager.OutlierDetection.event_log_path": WRITE,
    "envoy.config.bootstrap.v3.Runtime.symlink_root": READ,
    "envoy.config.bootstrap.v3.RuntimeLayer.DiskLayer.symlink_root": READ,
    "envoy.config.core.v3.ConfigSource.path": SECRETS,
    "envoy.config.core.v3.DataSource.filename": READ,
    "envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.StsService.actor_token_path": READ,
    "envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.StsService.subject_token_path": READ,
    "envoy.config.core.v3.GrpcService.GoogleGrpc.target_uri": TARGET_URI,
    "envoy.config.core.v3.HealthCheck.event_log_path": WRITE,
    "envoy.config.core.v3.PathConfigSource.path": SECRETS,
    "envoy.config.core.v3.Pipe.path": SOCKET,
    "envoy.config.core.v3.SocketAddress.network_namespace_filepath": READ,
    "envoy.config.core.v3.WatchedDirectory.path": SECRETS,
    "envoy.config.tap.v3.FilePerTapSink.path_prefix": WRITE,
    "envoy.config.trace.v3.DynamicOtConfig.library": READ,
    "envoy.config.trace.v3.LightstepConfig.access_token_file": READ,
    "envoy.extensions.access_loggers.file.v3.FileAccessLog.path": WRITE,
    "envoy.extensions.filters.http.grpc_json_reverse_transcoder.v3.GrpcJsonReverseTranscoder.descriptor_path": READ,
    "envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder.proto_descriptor": READ,
    "envoy.config.filter.network.mysql_proxy.v1alpha1.MySQLProxy.access_log": WRITE,
    "envoy.config.filter.network.zookeeper_proxy.v1alpha1.ZooKeeperProxy.access_log": WRITE,
    "envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy.access_log": WRITE,
    "envoy.extensions.filters.network.zookeeper_proxy.v3.ZooKeeperProxy.access_log": WRITE,
    "envoy.extensions.geoip_providers.maxmind.v3.MaxMindConfig.anon_db_path": READ,
    "envoy.extensions.geoip_providers.maxmind.v3.MaxMindConfig.asn_db_path": READ,
    "envoy.extensions.geoip_providers.maxmind.v3.MaxMindConfig.city_db_path": READ,
    "envoy.extensions.geoip_providers.maxmind.v3.MaxMindConfig.country_db_path": READ,
    "envoy.extensions.geoip_providers.maxmind.v3.MaxMindConfig.isp_db_path": READ,
    "envoy.extensions.grpc_service.call_credentials.sts_service.v3.StsServiceCredentials.actor_token_path": READ,
    "envoy.extensions.grpc_service.call_credentials.sts_service.v3.StsServiceCredentials.subject_token_path": READ,
    "envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink.event_log_path": WRITE,
    "envoy.extensions.http.cache.file_system_http_cache.v3.FileSystemHttpCacheConfig.cache_path": WRITE,
    "envoy.extensions.http.cache_v2.file_system_http_cache.v3.FileSystemHttpCacheV2Config.cache_path": WRITE,
    "envoy.extensions.key_value.file_based.v3.FileBasedKeyValueStoreConfig.filename": WRITE,
    "envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig.filename": READ,
    "envoy.extensions.transport_sockets.tls.v3.TlsKeyLog.path": WRITE,
    "envoy.extensions.watchdog.profile_action.v3.ProfileActionConfig.profile_path": WRITE,
}
"""Fields that name a file or a socket, and what Envoy does with it."""
NO_PATHS: Final = {
    "envoy.config.bootstrap.v3.Bootstrap.default_socket_interface",
    "envoy.config.bootstrap.v3.Runtime.override_subdirectory",
    "envoy.config.bootstrap.v3.Runtime.subdirectory",
    "envoy.config.bootstrap.v3.RuntimeLayer.DiskLayer.subdirectory",
    "envoy.config.core.v3.Extension.type_descriptor",
    "envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.StsService.token_exchange_service_uri",
    "envoy.config.core.v3.HealthCheck.HttpHealthCheck.path",
    "envoy.config.core.v3.HttpUri.uri",
    "envoy.config.route.v3.RedirectAction.host_redirect",
    "envoy.config.route.v3.RedirectAction.path_redirect",
    "envoy.config.route.v3.RedirectAction.scheme_redirect",
    "envoy.config.route.v3.RouteAction.HashPolicy.Cookie.path",
    "envoy.config.route.v3.RouteAction.path_rewrite",
    "envoy.config.route.v3.RouteMatch.path",
    "envoy.config.route.v3.RouteMatch.path_separated_prefix",
    "envoy.extensions.common.aws.v3.CredentialsFileCredentialProvider.profile",
    "envoy.extensions.common.aws.v3.IAMRolesAnywhereCredentialProvider.profile_arn",
    "envoy.extensions.filters.http.aws_lambda.v3.Config.credentials_profile",
    "envoy.extensions.filters.http.ext_authz.v3.HttpService.path_prefix",
    "envoy.extensions.filters.http.mcp.v3.ParserConfig.AttributeExtractionRule.path",
    "envoy.extensions.filters.http.mcp_router.v3.McpRouter.McpCluster.path",
    "envoy.extensions.filters.http.oauth2.v3.CookieConfig.path",
    "envoy.extensions.filters.http.oauth2.v3.OAuth2Config.redirect_uri",
    "envoy.extensions.filters.network.reverse_tunnel.v3.ReverseTunnel.request_path",
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TunnelingConfig.post_path",
    "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig.UdpTunnelingConfig.post_path",
    "envoy.extensions.grpc_service.call_credentials.sts_service.v3.StsServiceCredentials.token_exchange_service_uri",
    "envoy.extensions.http.custom_response.redirect_policy.v3.RedirectPolicy.uri",
    "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig.path_template",
    "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig.path_template_rewrite",
    "envoy.type.http.v3.Cookie.path",
}
"""Fields that look like one by their name, and were read about: they name nothing on a disk."""
_LOOKS: Final = re.compile(r"path|file|direct|socket|library|(^|_)descriptor$|(^|_)uri$|symlink|access_log$")

ANY: Final = "google.protobuf.Any"
STRUCTS: Final = ("udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct")


def descriptors() -> dict[str, Descriptor]:
    """Return the messages that may occur in resources, by their full names."""
    found: dict[str, Descriptor] = {}
    paths = sorted(str(file) for file in importlib.metadata.files("xds-protos") or [])
    modules = [path.removesuffix(".py").replace("/", ".") for path in paths if path.endswith("_pb2.py")]
    modules = [name for name in modules if name.replace(".", "/").startswith(PACKAGES)]
    modules += [f"google.protobuf.{name}_pb2" for name in STANDARD]
    for name in modules:
        stack = list(importlib.import_module(name).DESCRIPTOR.message_types_by_name.values())
        while stack:
            each = stack.pop()
            stack += each.nested_types
            if not _OLD.search(each.full_name + "."):
                found[each.full_name] = each
    return found


def unjudged(known: dict[str, Descriptor]) -> list[str]:
    """Return the fields that look as if they named something on a disk, and of which nobody has said what they do."""
    fields = (field for each in known.values() for field in each.fields if field.type == FieldDescriptor.TYPE_STRING)
    judged = LEAVES.keys() | NO_PATHS
    return sorted(each.full_name for each in fields if _LOOKS.search(each.name) and each.full_name not in judged)


def leading(known: dict[str, Descriptor]) -> set[str]:
    """Return the messages from which a path or a socket can be reached, or anything at all."""
    result = {ANY, SOURCE_TYPE, *STRUCTS, *(leaf.rpartition(".")[0] for leaf in LEAVES)}
    while more := {
        name
        for name, each in known.items()
        if name not in result and any(f.message_type and f.message_type.full_name in result for f in each.fields)
    }:
        result |= more
    return result


def table() -> str:
    """Return the file's content: a line for each message that leads somewhere, then the names of the others."""
    known = descriptors()
    if missing := unjudged(known):
        raise SystemExit(f"say in {Path(__file__).name} what these fields do: {', '.join(missing)}")
    inside = leading(known)
    lines = [
        f"{json.dumps(name)}: {json.dumps(dict(_fields(known[name], inside)))}"
        for name in sorted(inside & known.keys())
    ]
    others = sorted(name for name in known if name not in inside and known[name].containing_type is None)
    return '{"leading": {\n' + ",\n".join(lines) + '\n},\n"others": ' + json.dumps(others, indent=0) + "\n}\n"


def _fields(message: Descriptor, inside: set[str]) -> Iterator[tuple[str, list[str]]]:
    for each in sorted(message.fields, key=lambda each: each.number):
        leaf = LEAVES.get(each.full_name)
        if leaf is not None:
            yield str(each.number), [each.name, leaf]
        elif each.message_type is not None and each.message_type.full_name == SOURCE_TYPE:
            yield str(each.number), [each.name, SOURCE]
        elif each.message_type is not None and each.message_type.full_name in inside:
            kind = [MAP] if each.message_type.GetOptions().map_entry else []
            yield str(each.number), [each.name, each.message_type.full_name, *kind]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is stale")
    fresh = table()
    if not parser.parse_args().check:
        TARGET.write_text(fresh, encoding="utf-8")
        return 0
    if TARGET.read_text(encoding="utf-8") == fresh:
        return 0
    print(f"{TARGET.relative_to(ROOT)} is not what xds-protos says; run `make proto`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
