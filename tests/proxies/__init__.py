"""Real proxies before real instances."""
