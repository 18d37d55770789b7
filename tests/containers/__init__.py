"""What only several hosts can show: nodes and servers in containers, each with an address of its own."""
