"""What the commands of `sipproxy` do. sipproxy/cli declares them; a module here is imported only when one of its commands runs."""

__all__: list[str] = []
