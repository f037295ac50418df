#!/bin/sh
# Make .venv, or bring it up to date with pyproject.toml: the project in editable form with all its extras, at the
# versions of packaging/constraints.txt.
set -eu
cd "$(dirname "$0")/.."

mkdir -p .cache
exec 9>.cache/venv.lock
flock 9 # two makes at once must not install into one folder

# Only these parts of pyproject.toml say what is installed; a change of a linter's setting is none.
wanted=$({
    sed -n '/^\[/h; G; /\n\[\(build-system\|project\|tool\.hatch\)/P' pyproject.toml
    cat packaging/constraints.txt
} | cksum)
if [ "$(cat .venv/installed 2>/dev/null)" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null; then
    touch .venv/installed
    exit 0
fi

if ! .venv/bin/python -c '' 2>/dev/null; then
    sh packaging/system_packages.sh python
    python=$(sh packaging/system_packages.sh --which-python)
    echo "Making .venv with $python" >&2
    "$python" -m venv .venv
fi
echo "Installing hostmesh and what it needs into .venv" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check --retries 5 \
    --constraint packaging/constraints.txt --editable '.[agent,controller,envoy,dev]' </dev/null
echo "$wanted" >.venv/installed
