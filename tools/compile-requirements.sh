#!/bin/sh
# Compile requirements.txt and requirements-dev.txt from pyproject.toml: every version with its hashes, for Python 3.11
# to 3.13, without addresses. Pinned versions stay as they are; UPGRADE=1 looks for newer ones.
set -eu
python=${PYTHON:-python3}
upgrade=${UPGRADE:+--upgrade}

if [ ! -x build/uv/bin/uv ]; then
    "$python" -m pip install --quiet --disable-pip-version-check --target build/uv uv
fi
compile() {
    UV_PYTHON_DOWNLOADS=never build/uv/bin/uv pip compile --quiet --universal --python-version 3.11 \
        --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links $upgrade "$@" pyproject.toml
}
compile --extra dev --extra build -o requirements-dev.txt
# The constraint keeps one version of everything in both files.
grep -E '^[a-z0-9].*==' requirements-dev.txt | sed 's/ *\\$//' > build/constraints.txt
compile --extra build --constraint build/constraints.txt -o requirements.txt
