"""`python -m loadtest`: see run.py."""

from __future__ import annotations

from loadtest.run import main

if __name__ == "__main__":
    raise SystemExit(main())
