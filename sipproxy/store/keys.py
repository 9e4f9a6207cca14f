"""Every key this project's nodes keep in Redis, and the functions that build the ones of this package.

All start with `sp:`. Keys of one line, account or stream carry the same hash tag (`{...}`). That is not enough for Redis
Cluster, which is refused (store.errors): bindings and policy data are written together with their logs. Values are
msgpack (msgspec structs as maps) where not said otherwise.

- `sp:{line:<id>}:slots` (ZSET, store.slots): call id -> lease expiry in ms of Redis TIME. Lives until the last lease ends.
- `sp:{line:<id>}:holders` (HASH, store.slots): the same members -> who has them: account, node, since when (UTC ms) and the
  call's direction, as text with a line feed between. Lives as long.
- `sp:{trunk:<name>}:slots`, `sp:{trunk:<name>}:holders`: the same of a trunk route with a limit; `<id>:in` is a call that came
  by it.
- `sp:{acct:<user>}:bindings` (HASH, store.bindings): binding key -> engine.location.Binding. Lives until the last is dead.
- `sp:bindings:log` (STREAM, store.bindings): every change of a binding, in the script that makes it: `node` who wrote, `user`,
  `key`, and `b` (the binding) or `gone` (UTC ms). Bounded by number: who has missed some reads all bindings again.
- `sp:node:<id>` (HASH, store.nodes): heartbeat, as text: `beat` (a counter), `at_ms` (UTC) and what the node tells of itself,
  such as its journal's watermark. Lives for three beats.
- `sp:secret` (STRING, store.secret): 32 random bytes that the nodes share, so that a nonce of one is good at all: who reads
  it can make nonces, and nothing else. Made by the first node; lost, it is written again.
- `sp:probe` (STRING, store.connection): nothing of use, written to learn whether writing is possible. Lives for a minute.
- `sp:lines`, `sp:accounts`, `sp:numbers`, `sp:blocks`, `sp:psap`, `sp:profiles` (HASH, policy.store): policy data.
- `sp:policy:log` (STREAM, policy.store): every change of policy data.
- `sp:trace` (STREAM, store.traces): one engine.actions.MaliciousCall per entry, field `d`. Bounded by number.
- `sp:trace:access` (STREAM, store.traces): who read them and why, field `d`. Bounded by number.
- `sp:cdr` or `sp:{cdr:<n>}` (STREAM, cdr.publisher): one entry per CDR. Trimmed only behind every consumer group.
- `{sp:cdr}:access` (STREAM, cdr.access): who looked at CDRs. `{sp:cdr}:held` (STREAM, cdr.purging): those of fraud holds.
- `{sp:cdr}:invoices` (HASH, cdr.purging): end of calls -> sent, UTC ms. `{sp:cdr}:folders` (HASH, cdr.exporting): exports.
- `{sp:cdr}:purged:<node>:<n>` (STRING, cdr.purging): a bit for each number that a purge took, 65536 a key. `{sp:cdr}:holds`
  (HASH, cdr.purging): id -> records of a line that a purge leaves, while an objection runs. `{sp:cdr}:journals` (HASH,
  cdr.purging): node -> when a purge last looked at its journal, UTC ms.
- `{sp:cdr}:pull:<group>` (STRING, cdr.lease): who pulls for the group now. Lives for 15 s, renewed by its holder.
  `{sp:cdr}:pulls` (HASH, cdr.lease): group -> when a pull for it was complete, UTC ms.
- `{sp:cdr}:stats:<day>` (HASH), `:stats:days` (SET), `:stats:cursor` (STRING), cdr.stats: daily counts without numbers.

Leaves out: how the policy and CDR keys are built; those packages own them and import nothing from here.
"""

from __future__ import annotations

__all__ = [
    "BINDINGS_LOG",
    "BINDINGS_PATTERN",
    "NODE_PATTERN",
    "PROBE",
    "SECRET",
    "TRACES",
    "TRACE_ACCESS",
    "bindings",
    "bindings_user",
    "decoded",
    "encoded",
    "holders",
    "node",
    "node_id",
    "slot_keys",
    "slots",
]

PROBE = b"sp:probe"
SECRET = b"sp:secret"
BINDINGS_LOG = b"sp:bindings:log"
TRACES = b"sp:trace"
TRACE_ACCESS = b"sp:trace:access"
BINDINGS_PATTERN = b"sp:{acct:*}:bindings"
NODE_PATTERN = b"sp:node:*"

_BINDINGS_HEAD, _BINDINGS_TAIL = b"sp:{acct:", b"}:bindings"
_NODE_HEAD = b"sp:node:"


def encoded(name: str) -> bytes:
    """Return `name` in UTF-8; bytes that came in undecodable (as surrogates) leave as they came."""
    return name.encode("utf-8", "surrogateescape")


def decoded(name: bytes) -> str:
    """Return the inverse of `encoded`."""
    return name.decode("utf-8", "surrogateescape")


def slots(owner: str, kind: str = "line") -> bytes:
    """Return the key of the slots of a line, or of another kind of owner."""
    return slot_keys(owner, kind)[0]


def slot_keys(owner: str, kind: str = "line") -> tuple[bytes, bytes]:
    """Return the key of the slots, and that of who has them."""
    head = f"sp:{{{kind}:{owner}}}:".encode("utf-8", "surrogateescape")
    return head + b"slots", head + b"holders"


def holders(owner: str, kind: str = "line") -> bytes:
    """Return the key of who has them."""
    return slot_keys(owner, kind)[1]


def bindings(user: str) -> bytes:
    """Return the key of the account's bindings."""
    return b"%b%b%b" % (_BINDINGS_HEAD, encoded(user), _BINDINGS_TAIL)


def bindings_user(key: bytes) -> str:
    """Return the account of a key that matches BINDINGS_PATTERN. Raises ValueError for another key."""
    if not (key.startswith(_BINDINGS_HEAD) and key.endswith(_BINDINGS_TAIL)):
        raise ValueError(f"not a key of bindings: {key[:80]!r}")
    return decoded(key[len(_BINDINGS_HEAD) : -len(_BINDINGS_TAIL)])


def node(node_id: str) -> bytes:
    """Return the key of the node's heartbeat."""
    return _NODE_HEAD + encoded(node_id)


def node_id(key: bytes) -> str:
    """Return the node of a key that matches NODE_PATTERN. Raises ValueError for another key."""
    if not key.startswith(_NODE_HEAD):
        raise ValueError(f"not a key of a node: {key[:80]!r}")
    return decoded(key[len(_NODE_HEAD) :])
