"""The keeper, which starts a node's programs and outlives the node's death for long enough to stop them: its own side of the socket."""
