"""Call detail records into PostgreSQL, each call once.

    python postgresql.py redis://localhost "dbname=billing" NAME

NAME tells several such programs apart, and stays the same when one is started again. Needs psycopg 3 and this project.
"""

from __future__ import annotations

import sys

import psycopg

from cdr.consumer import Delivery, RefusedError, consume, latest

TABLE = """
CREATE TABLE IF NOT EXISTS calls (
    id text PRIMARY KEY,            -- ours, the same in every delivery of a call
    node text NOT NULL,
    seq bigint NOT NULL,            -- gapless per node, 0 while the call lives
    type text NOT NULL,             -- start, interim, final
    line text NOT NULL,
    calling text NOT NULL,
    canonical text NOT NULL,
    setup_at timestamptz NOT NULL,
    duration_ms bigint NOT NULL,
    billable_ms bigint NOT NULL,
    duration_certain boolean NOT NULL,
    status integer NOT NULL,
    end_reason text NOT NULL,
    user_agent text NOT NULL,
    record bytea NOT NULL           -- the whole record as it came (MessagePack), newer fields included
)
"""
# A final record replaces what there is by id, and nothing replaces a final one: not an interim record that comes late, and not
# the same record delivered again.
UPSERT = """
INSERT INTO calls VALUES (
    %(id)s, %(node)s, %(seq)s, %(type)s, %(line)s, %(calling)s, %(canonical)s, to_timestamp(%(setup_at_ms)s / 1000.0),
    %(duration_ms)s, %(billable_ms)s, %(duration_certain)s, %(status)s, %(end_reason)s, %(user_agent)s, %(data)s)
ON CONFLICT (id) DO UPDATE SET
    seq = excluded.seq, type = excluded.type, line = excluded.line, calling = excluded.calling, canonical = excluded.canonical,
    setup_at = excluded.setup_at, duration_ms = excluded.duration_ms, billable_ms = excluded.billable_ms,
    duration_certain = excluded.duration_certain, status = excluded.status, end_reason = excluded.end_reason,
    user_agent = excluded.user_agent, record = excluded.record
WHERE calls.type <> 'final' AND (excluded.type = 'final'
    OR (excluded.type = 'interim' OR calls.type = 'start') AND excluded.duration_ms >= calls.duration_ms)
"""


class Billing:
    """Writes batches, each in one transaction. A connection that broke is made anew with the next batch."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.Connection | None = None

    def write(self, batch: list[Delivery]) -> None:
        """Returns when the batch is committed. Raises RefusedError for values that the table cannot hold."""
        data = {(one.record.id, one.record.type, one.record.duration_ms): one.data for one in batch}
        chosen = latest(one.record for one in batch)
        rows = [{**_columns(record), "data": data[record.id, record.type, record.duration_ms]} for record in chosen]
        try:
            connection = self._connected()
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany(UPSERT, rows)
        except (psycopg.DataError, psycopg.IntegrityError) as error:  # such as a NUL in a text: the record, not the database
            raise RefusedError(str(error)) from error
        except psycopg.Error:
            self._close()
            raise

    def _connected(self) -> psycopg.Connection:
        if self._connection is None:
            connection = psycopg.connect(self._dsn, autocommit=True, connect_timeout=5)
            connection.execute("SELECT pg_advisory_lock(1)")  # two programs that make the table at once get in each other's way
            connection.execute(TABLE)
            connection.execute("SELECT pg_advisory_unlock(1)")
            self._connection = connection
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _columns(record: object) -> dict[str, object]:
    names = ("id", "node", "seq", "type", "line", "calling", "canonical", "setup_at_ms", "duration_ms", "billable_ms")
    names += ("duration_certain", "status", "end_reason", "user_agent")
    return {name: getattr(record, name) for name in names}


def tell(kind: str, text: str) -> None:
    sys.stderr.write(f"{kind}: {text}\n")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit('usage: postgresql.py redis://HOST "dbname=NAME" CONSUMER')
    url, dsn, name = sys.argv[1:]
    consume(url, Billing(dsn).write, group="billing", name=name, on_event=tell)
