"""What is deployed: packing and unpacking, the repository in the object store, and a node's cache."""
