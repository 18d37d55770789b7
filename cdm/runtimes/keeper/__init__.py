"""The keeper, which starts a node's programs and stops them when the node is gone: its side of the socket.

Started as ``python -m cdm.runtimes.keeper``. ``keeper`` is its loop, ``runs`` what it knows of each run, ``spawn``
the way from a command to a program, ``processes`` and ``cgroup`` what the system says about who lives. ``protocol`` and
``packets`` serve both ends of the socket; ``leftovers`` is used by the node, for what a dead keeper left.
"""
