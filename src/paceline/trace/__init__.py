"""Span trees, logical calls, critical path and the figures of a run: what diagnosis, projection and reports share."""
