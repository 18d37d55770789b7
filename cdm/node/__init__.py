"""One node, put together from the parts of its role, and wired."""
