"""Events in, actions out: registrar, request routing, call life cycle. Pure; the shells perform the actions."""
