"""Operators' interfaces of a running node."""
