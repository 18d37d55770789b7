"""Everything that knows NATS: the only package that imports the client."""
