"""The checks of rollouts, made: HTTP, NATS, Prometheus. Only the leader's node makes them."""
