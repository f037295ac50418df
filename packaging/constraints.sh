#!/bin/sh
# Write packaging/constraints.txt: the newest versions that pyproject.toml allows, as a fresh environment gets them.
set -eu
cd "$(dirname "$0")/.."
python=$(sh packaging/system_packages.sh --which-python)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --editable '.[agent,controller,envoy,dev]' </dev/null
{
    echo '# The versions that are tested; made by `make constraints`. What users get is pyproject.toml.'
    "$folder/venv/bin/python" -m pip freeze --exclude-editable
} >packaging/constraints.txt
