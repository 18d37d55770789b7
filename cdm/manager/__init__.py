"""What decides: from desired state, actual state and nodes to commands, each with its reason. Nothing here does I/O."""
