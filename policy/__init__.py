"""Policy: what a dialled string means, and whether, and where to, a call may go. Pure but for `policy.store`."""
