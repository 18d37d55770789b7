"""How blueprints came to be served, as traces of OpenTelemetry. Optional (extra ``otel``)."""
