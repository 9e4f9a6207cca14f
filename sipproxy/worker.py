"""The program of one worker: `python -m sipproxy.worker`, started by the supervisor (`workers`) with all it needs on stdin."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import msgspec

from sipproxy import compiled

__all__ = ["main"]


def main() -> int:
    """Serve until told to stop; the exit code."""
    if fault := compiled.fault():  # modules may have been made anew since the supervisor started
        print(f"sipproxy: {fault}", file=sys.stderr)  # noqa: T201  a person reads this
        return 1
    from sipproxy import app  # noqa: PLC0415
    from sipproxy.orders import Orders  # noqa: PLC0415
    from sipproxy.process import end_with  # noqa: PLC0415

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the supervisor reloads for all
    orders = msgspec.json.decode(sys.stdin.buffer.read(), type=Orders)
    config, spec = orders.config, orders.spec
    if not end_with(spec.supervisor):
        return 1
    return app.main(config, config_path=Path(spec.config_path), embedded=False, greet=spec.welcome, siblings=spec)


if __name__ == "__main__":
    sys.exit(main())
