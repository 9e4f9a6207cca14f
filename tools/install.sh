#!/bin/sh
# Install the hashed requirements $2 into the environment $1, then the project itself, editable.
set -eu
venv=$1
requirements=$2
pip="$venv/bin/python -m pip --disable-pip-version-check"

echo "installing $requirements into $venv"
$pip install --quiet --require-hashes -r "$requirements"
# The build tools came with the requirements, hashed like the rest; nothing is resolved here.
$pip install --quiet --no-deps --no-build-isolation --editable .
