"""SIP registrar, policy proxy and call-detail recorder for small carriers."""
