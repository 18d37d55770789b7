"""Why things are as they are, with what led to it, for whoever shows it."""
