"""`python -m loadtest`: see run.py."""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is to be ended yet: Ctrl-C needs no traceback of an import

    from loadtest.run import main

    raise SystemExit(main())
