"""What slices write: kept in files, read again, and shown to whoever asks over NATS."""
