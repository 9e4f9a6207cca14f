"""The program of one worker: `python -m sipproxy.worker`, started by the supervisor (`workers`) with all it needs on stdin."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import msgspec

from sipproxy import app
from sipproxy.orders import Orders

__all__ = ["main"]


def main() -> int:
    """Serve until told to stop; the exit code."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the supervisor reloads for all
    orders = msgspec.json.decode(sys.stdin.buffer.read(), type=Orders)
    config, spec = orders.config, orders.spec
    return app.main(config, config_path=Path(spec.config_path), embedded=False, greet=spec.welcome, siblings=spec)


if __name__ == "__main__":
    sys.exit(main())
