"""Who leads: the election, the lease and its fence, and what only the leader writes."""
