"""The gateway: an HTTP proxy for model calls that records every call and applies an acceleration policy."""
