"""Room tune."""
