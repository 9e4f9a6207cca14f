"""Shells that move bytes: UDP and TCP listeners, name resolution."""
