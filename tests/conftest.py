"""What holds for all tests: the examples of properties, what starts first, and what would cost all of them time."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest
from hypothesis import settings
from tests.examples import declare_profiles

declare_profiles()
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_configure() -> None:
    """Hear Ctrl-C: a job in the background starts deaf to it, and so would every process that a test interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)  # after the shuffle
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start what has a time limit of its own first: nobody waits in the end for the one long test that came last."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported: with all SDKs, a look through it takes a quarter of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_root_certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let clients trust one authority: all of them take 40 ms to read, for each client, and no test needs any."""
    one, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----\n")
    file = tmp_path_factory.mktemp("certificates") / "one.pem"
    file.write_text(one + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(file))
        yield
