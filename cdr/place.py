"""Where the keys that belong to a stream of records lie: in the stream's slot, so that one script may touch both."""

from __future__ import annotations

__all__ = ["beside", "is_tagged"]


def beside(stream: str, what: str) -> str:
    """The key of `what`: `{sp:cdr}:stats` for the stream `sp:cdr`, `sp:{cdr:0}:stats` for `sp:{cdr:0}`.

    A key with `{...}` in it is placed by what the braces hold (Redis Cluster). Raises ValueError for braces that are no tag.
    """
    return f"{stream}:{what}" if is_tagged(stream) else f"{{{stream}}}:{what}"


def is_tagged(stream: str) -> bool:
    """Whether the key says itself what it is placed by. Raises ValueError for braces that are no tag."""
    start = stream.find("{")
    if start >= 0 and stream.find("}", start) > start + 1:
        return True
    if "{" in stream or "}" in stream:
        raise ValueError(f"key of the stream has braces that are no hash tag: {stream!r:.80}")
    return False
