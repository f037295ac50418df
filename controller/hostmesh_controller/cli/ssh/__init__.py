"""Hosts joined and removed over SSH, from the operator's terminal.

`place` says where a host is, `host_keys` whether it is the right one, `secrets` what it is told in confidence,
`session` runs commands there (fabric, imported when a connection is opened), `shell` over one connection after another,
`packages` is the package manager's seam, `joining` (with `installing`) and `leaving` are the steps, `verifying` the
request at the end, `fleet` does many hosts at once, `hosts_file` reads their list.
"""
