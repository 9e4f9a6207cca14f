"""A process that appends facts and says after each append, on standard output, that it returned. It is killed by the test."""

from __future__ import annotations

import sys

from cdr.facts import Admit, Alive, End, Record
from cdr.journal import Journal


def main() -> None:
    journal = Journal(sys.argv[1], node="n1", segment_bytes=8192, fsync_interval_ms=1)
    seq = journal.recover().next_seq
    for _ in range(100_000):
        record = Record(id=f"call-{seq}", node="n1", direction="outgoing", setup_at_ms=seq, user_agent="u" * (seq % 300))
        journal.append(Admit(record))
        sys.stdout.write(f"A {seq}\n")
        sys.stdout.flush()
        journal.append(Alive(record.id, seq, 1))
        record.seq = seq
        journal.append(End(record))
        sys.stdout.write(f"E {seq}\n")
        sys.stdout.flush()
        if seq % 50 == 0:
            journal.confirm(seq - 20)
            sys.stdout.write(f"C {seq - 20}\n")
            sys.stdout.flush()
        seq += 1


if __name__ == "__main__":
    main()
