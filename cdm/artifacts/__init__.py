"""What is deployed: files to artifacts and back, where they are kept, and a node's copies of them."""
