"""What the gateway counts, over all its processes, and how Prometheus reads it."""
