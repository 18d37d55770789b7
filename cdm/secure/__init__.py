"""Who may do what in NATS: the permissions of each role, and a server's configuration that grants them."""
