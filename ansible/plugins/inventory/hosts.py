"""Inventory of the hosts that a hostmesh controller knows."""

from __future__ import annotations

DOCUMENTATION = r"""
name: hosts
short_description: Hosts of a hostmesh mesh
description:
  - Asks the controller's API which hosts there are.
  - Groups them as C(namespace_NAME), C(label_KEY_VALUE), C(version_VERSION) and C(health_STATE).
  - The file must end in C(hostmesh.yml) or C(hostmesh.yaml).
author: The hostmesh authors
options:
  plugin:
    description: Always C(hostmesh.mesh.hosts).
    required: true
    choices: [hostmesh.mesh.hosts]
  address:
    description: The controller, as C(unix:///PATH) or C(https://HOST:PORT).
    default: unix:///var/lib/hostmesh-controller/admin.sock
    env: [{name: HOSTMESH_ADDRESS}]
  ca:
    description: File with the root certificate (PEM) to trust for https.
    type: path
    env: [{name: HOSTMESH_CA}]
  token_file:
    description: File with the API token, which a viewer's role suffices for.
    type: path
    env: [{name: HOSTMESH_TOKEN_FILE}]
  timeout:
    description: Seconds that each question may take.
    type: int
    default: 30
"""

EXAMPLES = r"""
plugin: hostmesh.mesh.hosts
address: https://mesh.example.org:15014
ca: /etc/hostmesh/root.pem
token_file: /etc/hostmesh/viewer.token
"""

import json
import os
from pathlib import Path
from urllib.parse import quote

from ansible.errors import AnsibleParserError
from ansible.module_utils.common.text.converters import to_native
from ansible.module_utils.urls import open_url
from ansible.plugins.inventory import BaseInventoryPlugin


class InventoryModule(BaseInventoryPlugin):
    NAME = "hostmesh.mesh.hosts"

    def verify_file(self, path):
        return super().verify_file(path) and path.endswith(("hostmesh.yml", "hostmesh.yaml"))

    def parse(self, inventory, loader, path, cache=True):
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        for host in self._get("/v1/hosts")["items"]:
            # Its version and namespace are in what is known of it alone.
            self._add(self._get("/v1/hosts/" + quote(host["name"], safe="")))

    def _get(self, path):
        address = self.get_option("address")
        options = {"timeout": self.get_option("timeout"), "headers": {"Accept": "application/json"}}
        if address.startswith("unix://"):
            options["unix_socket"] = address[len("unix://") :]
            url = "http://hostmesh" + path
        elif address.startswith("https://"):
            options["headers"]["Authorization"] = "Bearer " + self._token()
            options["ca_path"] = self.get_option("ca")
            url = address.rstrip("/") + path
        else:
            raise AnsibleParserError(f"address is {address!r}: give unix:///PATH or https://HOST:PORT")
        try:
            return json.load(open_url(url, follow_redirects="none", **options))
        except Exception as error:
            raise AnsibleParserError(
                f"the controller at {address} did not answer {path}: {to_native(error)}"
            ) from error

    def _token(self):
        path = self.get_option("token_file")
        if not path:
            token = os.environ.get("HOSTMESH_TOKEN", "")
            if not token:
                raise AnsibleParserError("https needs an API token: give token_file, or HOSTMESH_TOKEN")
            return token
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise AnsibleParserError(f"token_file {path} cannot be read: {error.strerror}") from error

    def _add(self, host):
        name = host["name"]
        self.inventory.add_host(name)
        if host["addresses"]:
            self.inventory.set_variable(name, "ansible_host", host["addresses"][0])
            self.inventory.set_variable(name, "agent_addresses", host["addresses"])
        for key in ("state", "connected", "lease", "workloads", "labels"):
            self.inventory.set_variable(name, "hostmesh_" + key, host[key])
        spaces = {each.partition("/")[0] for each in host["workloads"]}
        if host["spec"].get("namespace"):
            spaces.add(host["spec"]["namespace"])
        groups = ["hostmesh_agents", *("namespace_" + each for each in sorted(spaces))]
        groups += [f"label_{key}_{value}" for key, value in sorted(host["labels"].items())]
        groups.append("version_" + (host["report"].get("facts", {}).get("agent_version") or "unknown"))
        groups.append("health_" + health(host))
        for group in groups:
            self.inventory.add_host(name, group=self.inventory.add_group(self._sanitize_group_name(group)))


def health(host):
    """Return what is the matter with a host, the worst first, or `ok`."""
    if not host["connected"]:
        return "away"
    if host["envoy_down"] or host["unhealthy"]:
        return "unhealthy"
    return "overdue" if host["overdue"] or host["lease"] != "alive" else "ok"
