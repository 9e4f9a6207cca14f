#!/bin/sh
# The whole suite in three processes at a time: what runs nodes and other programs mostly waits, what computes does not.
# Together they take the time of the longest one. The output of the others is shown behind that of the first.
set -eu
python=$1
mkdir -p build

"$python" -m pytest --hypothesis-profile same tests --ignore tests/integration --ignore tests/interop --ignore tests/store --ignore tests/cli \
    >build/tests-computing.log 2>&1 &
computing=$!
"$python" -m pytest --hypothesis-profile same tests/interop tests/store tests/cli \
    tests/integration/test_worker*.py tests/integration/test_following*.py >build/tests-programs.log 2>&1 &
programs=$!
trap 'kill "$computing" "$programs" 2>/dev/null' INT TERM HUP
failed=0
"$python" -m pytest --hypothesis-profile same tests/integration \
    --ignore-glob '*/test_worker*.py' --ignore-glob '*/test_following*.py' || failed=1
echo "programs:"
wait "$programs" || failed=1
cat build/tests-programs.log
echo "what computes:"
wait "$computing" || failed=1
cat build/tests-computing.log
exit $failed
