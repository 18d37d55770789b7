"""`cdm demo`: the main job, shown on an embedded nats-server."""
