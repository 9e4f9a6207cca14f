"""Kamailio as the node's peer: `peers/proxy.cfg` with its tables and Redis scripts, in a directory of its own.

It does the job of a node from memory: digest for all accounts, blocked prefixes, a channel taken and given back in Redis, a
record of each call in a stream. Leaves out: whatever else the node does (see the head of the configuration).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.kamailio import KamailioProcess, kamailio_program
from sipproxy.sip.digest import ha1

if TYPE_CHECKING:
    from loadtest.node import LineSpec
    from loadtest.ua import Address
    from loadtest.valkey import Valkey

__all__ = ["RECORDS", "KamailioProxy", "missing"]

MODULE = "ndb_redis.so"
PLACES = ("/usr/lib", "/usr/local/lib", "/usr/lib64")
RECORDS = "records"
LEASE_S = 90
TAKE = f"""
local now = redis.call('TIME')[1]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + {LEASE_S}, ARGV[1])
return 1
"""
END = f"""
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('XADD', '{RECORDS}', '*', 'call', ARGV[1], 'caller', ARGV[2], 'dialled', ARGV[3], 'source', ARGV[4],
    'began', ARGV[5], 'answered', ARGV[6], 'ended', ARGV[7], 'status', ARGV[8], 'tags', ARGV[9] .. ' ' .. ARGV[10])
return 1
"""


def missing() -> str:
    """What is not installed, as a sentence; "" when all is."""
    try:
        kamailio_program()
    except FileNotFoundError as error:
        return str(error)
    if not any(found for place in PLACES for found in Path(place).glob(f"**/kamailio/modules/{MODULE}")):
        return f"kamailio has no {MODULE} (Debian: apt-get install kamailio-redis-modules)"
    return ""


class KamailioProxy(KamailioProcess):
    """A running Kamailio in front of `trunk`; use as an async context manager. Raises RuntimeError when it does not start."""

    def __init__(
        self, lines: Sequence[LineSpec], prefixes: Sequence[str], *, realm: str, trunk: Address, store: Valkey, children: int
    ) -> None:
        super().__init__("127.0.0.1", 0)
        self._lines, self._prefixes, self._realm, self._trunk = lines, prefixes, realm, trunk
        self._store, self._children = store, children

    async def __aenter__(self) -> KamailioProxy:
        self.prepare()
        self._write_tables()
        client = self._store.client
        defines = {
            "REALM": f'"{self._realm}"',
            "TRUNK_URI": f'"sip:{self._trunk[0]}:{self._trunk[1]}"',
            "TABLES": f'"text://{self.directory}"',
            "REDIS": f'"name=calls;unix={self._store.directory / "s"};db=0"',
            "CHILDREN": str(self._children),
            "TAKE": f'"EVALSHA {await client.script_load(TAKE)} 1 line:$au $ci {self._lines[0].channels}"',
            "END": f'"EVALSHA {await client.script_load(END)} 1 line:$fU $ci $fU $tU $si:$sp $sht(calls=>$ci) '
            '$sht(answers=>$ci) $TV(Sn) $var(status) $ft $tt"',
        }
        await self.launch("proxy.cfg", defines, ["-m", "512", "-M", "16", "-x", "tlsf"])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    def _write_tables(self) -> None:
        """Tables of db_text: the columns with their types, then a row a line."""
        accounts = ["key_name(string) key_type(int) value_type(int) key_value(string) expires(int)"]
        accounts += [f"{line.user}:0:0:{ha1('MD5', line.user, self._realm, line.password)}:0" for line in self._lines]
        blocked = ["tprefix(string) tvalue(string)", *(f"{prefix}:blocked" for prefix in self._prefixes)]
        for name, rows in (("accounts", accounts), ("blocked", blocked)):
            (self.directory / name).write_text("\n".join([*rows, ""]))
