"""`cdm demo`: what cdm is for, shown on an embedded nats-server."""
