"""How many examples a property is tried on: a few that never change by default, many fresh ones every night."""

from hypothesis import HealthCheck, settings

_USUAL = 100


def declare_profiles() -> None:
    """`fast` and `thorough`; in neither may one example be late, as a busy machine is no defect."""
    patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("fast", patient, max_examples=_USUAL, derandomize=True)
    settings.register_profile("thorough", patient, max_examples=20 * _USUAL, print_blob=True)


def examples(count: int) -> settings:
    """Try a property on so many examples where one is dear or the law simple; in proportion in other profiles."""
    return settings(max_examples=max(1, count * settings().max_examples // _USUAL))
