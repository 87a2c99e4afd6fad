"""Load: what to send, when, and what came back, latency counted from the intended start."""
