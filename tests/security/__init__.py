"""Attacks: of slices on their node and on each other, of nodes and operators on the cluster."""
