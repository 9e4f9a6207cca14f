"""Policy: what a dialled string means, and whether, and where to, a call may go. Pure but for `policy.store`."""

from policy.evaluate import evaluate, rule_family

__all__ = ["evaluate", "rule_family"]
