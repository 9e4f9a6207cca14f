#!/bin/sh
# Programs that the tests drive and that no Python package brings: install what is missing when that is allowed here,
# else say in one line what is left out and why. With CI=true nothing may be left out.
# SBIN, MODULES and GUARD are for the test of this script alone.
set -eu

# program, or module of Kamailio:package:what it is for
NEEDS="sipp:sip-tester:SIPp scenarios
kamailio:kamailio:Kamailio as the trunk's peer
ndb_redis.so:kamailio-redis-modules:Kamailio's limits in Redis, to compare with
sipsak:sipsak:OPTIONS from sipsak
dnsmasq:dnsmasq-base:dnsmasq as a name server
nft:nftables:the drop list in the kernel
pg_ctlcluster:postgresql:PostgreSQL as billing's database"

# whether one of the folders of Kamailio's modules has it
has_module() {
    for folder in ${MODULES-/usr/lib/*/kamailio/modules /usr/lib64/kamailio/modules /usr/local/lib*/kamailio/modules}; do
        [ ! -e "$folder/$1" ] || return 0
    done
    return 1
}

missing() {
    echo "$NEEDS" | while IFS=: read -r program package purpose; do
        PATH="$PATH:${SBIN-/usr/sbin}" command -v "$program" >/dev/null 2>&1 || has_module "$program" || echo "$1" | sed "s/PACKAGE/$package/; s/PURPOSE/$purpose/"
    done
}

packages=$(missing PACKAGE)
[ -n "$packages" ] || exit 0
reason=""
if ! command -v apt-get >/dev/null 2>&1; then
    reason="there is no apt-get here"
elif [ "$(id -u)" -ne 0 ]; then
    reason="only root may install them: sudo apt-get install $(echo $packages)"
else
    echo "installing" $packages
    # The package starts its daemon on port 5060 by itself; the tests start their own, on free ports.
    guard=${GUARD:-/usr/sbin/policy-rc.d}
    if [ ! -e "$guard" ]; then
        trap 'rm -f "$guard"' EXIT
        printf '#!/bin/sh\nexit 101\n' > "$guard"
        chmod 755 "$guard"
    fi
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages; } > "$log" 2>&1 </dev/null; then
        tail -n 5 "$log" >&2
        reason="apt-get failed"
    fi
    rm -f "$log"
    [ -n "$(missing PACKAGE)" ] || exit 0
    reason=${reason:-"apt-get did not bring them"}
fi

left_out=$(missing PURPOSE | paste -sd, | sed 's/,/, /g')
echo "left out: $left_out; $reason" >&2
[ "${CI:-}" != true ] || { echo "CI leaves nothing out" >&2; exit 1; }
