"""Room diagnose."""
