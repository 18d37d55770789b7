"""What decides: desired and actual state and the nodes in, commands with their reasons out. Nothing here does I/O."""
