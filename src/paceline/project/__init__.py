"""Projection: a simulation of the recorded application under the recorded load, with changes applied (pure)."""

from paceline.project.projector import Projector, project

__all__ = ["Projector", "project"]
