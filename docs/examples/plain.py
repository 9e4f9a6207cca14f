"""Call detail records with nothing but `redis` and `msgpack`: one JSON object a line on standard output.

    python plain.py redis://localhost

The order that matters: create the group at 0, write and flush, acknowledge. What was given to this name and not acknowledged
comes first, so that a program that was killed in between prints those records again: keep one per `id`. What is no record is
neither printed nor acknowledged here; `cdr.consumer` has a dead-letter stream for it.
"""

from __future__ import annotations

import json
import os
import stat
import sys

import msgpack
import redis

STREAM, GROUP, NAME = "sp:cdr", "plain", "plain-1"

if len(sys.argv) != 2:
    sys.exit("usage: plain.py redis://HOST")
client = redis.Redis.from_url(sys.argv[1])
try:
    client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
except redis.ResponseError as error:
    if not str(error).startswith("BUSYGROUP"):
        raise

position = "0"  # what was given to us and not acknowledged; then ">", what nobody was given yet
while True:
    found = client.xreadgroup(GROUP, NAME, {STREAM: position}, count=100)
    entries = [] if not found else found[0][1]
    if not entries and position == ">":
        break
    done = []
    for entry_id, fields in entries:
        try:
            record = msgpack.unpackb(fields[b"d"])
        except (KeyError, ValueError, TypeError) as error:
            sys.stderr.write(f"entry {entry_id.decode()} is no record: {error}\n")
            continue
        if record.get("type", "final") == "final":
            sys.stdout.write(json.dumps(record, default=repr) + "\n")
        done.append(entry_id)
    sys.stdout.flush()
    if stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode):
        os.fsync(sys.stdout.fileno())
    if done:
        client.xack(STREAM, GROUP, *done)
    if position != ">":
        position = ">" if not entries else entries[-1][0].decode()
