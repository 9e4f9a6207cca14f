"""What the commands of `sipproxy` do. sipproxy/cli declares them; a module here is imported only when its command runs."""

__all__: list[str] = []
