"""Looks a cluster over: gathers a picture of it, judges it without I/O, and mends what is safe to mend."""
