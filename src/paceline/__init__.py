"""Paceline records, explains, projects, fixes and proves the performance of LLM applications.

Importing this package does nothing: no patching, no environment reads, no event-loop policy.
"""

__version__ = "0.1.0"
