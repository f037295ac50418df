#!/bin/sh
# Make .cache/ansible: ansible's tools in a venv of their own, for their dependencies bind ours to nothing that way.
set -eu
cd "$(dirname "$0")/.."
wanted="ansible-core>=2.17,<2.20 ansible-lint>=25,<26 molecule>=25,<26"
[ "$(cat .cache/ansible/installed 2>/dev/null)" = "$wanted" ] && exit 0
sh packaging/system_packages.sh python
mkdir -p .cache
"$(sh packaging/system_packages.sh --which-python)" -m venv .cache/ansible
# shellcheck disable=SC2086 # words
.cache/ansible/bin/python -m pip install --quiet --disable-pip-version-check $wanted </dev/null
echo "$wanted" >.cache/ansible/installed
