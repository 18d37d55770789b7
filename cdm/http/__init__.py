"""What cdm tells over HTTP: endpoints for proxies, metrics, a page. Optional (extra ``http``), and read-only."""
