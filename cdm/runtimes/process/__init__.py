"""Slices as processes of this machine: the node's side of the keeper's socket.

``runtime`` is what the agent calls, ``slice`` the life of one slice, ``supervisor`` keeps a keeper going, ``link`` is
the connection to it and ``handle`` what is known of one run. ``command``, ``checks`` and ``restart`` decide for a slice
what to run, whether it is ready or alive, and whether to start it again. ``users`` gives slices users and folders of
their own, with numbers out of ``claims``; ``files`` is how folders are handled that programs wrote to.
"""
