"""Load generator with simulated routers, trunk and PSAP."""
