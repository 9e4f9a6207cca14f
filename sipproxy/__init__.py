"""SIP registrar, policy proxy and call-detail recorder for small carriers."""

__version__ = "0.1.0"  # as in pyproject.toml, which a test compares
