"""The acceleration layer: exact cache, single-flight, limiter, routes, cost. Usable without the lab or the gateway."""
