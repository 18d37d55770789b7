"""Pure values: what there is in a cluster and how it is written down. Imports nothing of NATS."""
