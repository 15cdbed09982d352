#!/usr/bin/env bash
# Installs the lowest versions that pyproject.toml allows into an environment of its own and runs the default tests.
# The lower bounds are those that passed here.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
python3 -m venv "$environment/venv"
"$environment/venv/bin/pip" install --quiet uv
"$environment/venv/bin/uv" pip install --quiet --python "$environment/venv/bin/python" --resolution lowest-direct -e ".[test]"
"$environment/venv/bin/uv" pip list --python "$environment/venv/bin/python"
"$environment/venv/bin/python" -m pytest -q "$@"
