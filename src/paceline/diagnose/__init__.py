"""Diagnosis: from a run to its causes of lost time and money, ranked. Pure: no files, sockets or clocks."""

from paceline.diagnose.findings import RULES, diagnose

__all__ = ["RULES", "diagnose"]
