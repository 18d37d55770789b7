"""Slices as processes of the machine: the node's side of the keeper's socket."""
