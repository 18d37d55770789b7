"""Pure tests: no network, no NATS, no sleeping; time is a number."""
