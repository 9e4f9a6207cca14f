"""The node's certificate over its life: read at the start, read again when it is renewed on disk."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sipproxy.net.tls import Tls, TlsError, TlsFiles

if TYPE_CHECKING:
    import structlog

    from sipproxy.config import Config

__all__ = ["renew", "tls_of"]

RENEW_S = 5.0  # between two looks at the files


def tls_of(config: Config) -> Tls | None:
    """What the listeners of a configuration need for TLS; None when none of them speaks it. Raises TlsError."""
    if all(listen.transport != "tls" for listen in config.listen):
        return None
    files = config.tls
    return Tls(TlsFiles(files.certificate, files.key, files.ca, files.clients))


async def renew(tls: Tls | None, log: structlog.stdlib.BoundLogger) -> None:
    """Use certificates that were renewed on disk, until cancelled; faulty ones leave the former ones in use."""
    while tls is not None:
        await asyncio.sleep(RENEW_S)
        try:
            if tls.reload():
                log.info("certificate_renewed", certificate=tls.files.certificate)
        except TlsError as error:
            log.warning("certificate_not_renewed", problem=str(error))
