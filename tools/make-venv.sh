#!/bin/sh
# Make the virtual environment $1 with $PYTHON. Where the system has no ensurepip (Debian without python3-venv), by
# virtualenv, which pip puts into build/ so that nothing of the system is changed.
set -eu
venv=$1
python=${PYTHON:-python3}

"$python" - <<'EOF' || exit 1
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}: name one with make PYTHON=python3.11")
EOF

if "$python" -c 'import ensurepip, venv' 2>/dev/null && "$python" -m venv "$venv" 2>/dev/null; then
    exit 0
fi
rm -rf "$venv"
echo "no ensurepip here: making $venv with virtualenv"
"$python" -m pip install --quiet --disable-pip-version-check --target build/virtualenv virtualenv
PYTHONPATH=build/virtualenv "$python" -m virtualenv --quiet "$venv"
