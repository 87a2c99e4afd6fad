"""How long tests wait for what takes milliseconds, so that a hang ends and a busy machine is never taken for one."""

PATIENCE_S = 120.0
