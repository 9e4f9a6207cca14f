"""`python -m sipproxy` is the program `sipproxy`."""

from sipproxy.cli import main

main()
