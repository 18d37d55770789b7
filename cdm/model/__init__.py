"""Pure values: what a cluster consists of, and how each is written in a bucket. Imports nothing of NATS."""
