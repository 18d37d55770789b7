"""The keeper, which starts a node's programs and stops them when the node is gone: its side of the socket."""
