#!/bin/sh
# The whole suite in two processes at a time: what runs nodes mostly waits, what computes does not. Together they
# take the time of the longer one. The output of the second is shown behind that of the first.
set -eu
python=$1
mkdir -p build
log=build/tests-computing.log

"$python" -m pytest tests --ignore tests/integration --ignore tests/interop --ignore tests/store >"$log" 2>&1 &
computing=$!
trap 'kill "$computing" 2>/dev/null' INT TERM HUP
"$python" -m pytest tests/integration tests/interop tests/store &&
    running=0 || running=1
echo "the other half:"
wait "$computing" && computed=0 || computed=1
cat "$log"
exit $((running | computed))
