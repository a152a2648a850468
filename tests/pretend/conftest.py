import pytest

from tests.pretend.device import PretendCards


@pytest.fixture
def cards():
    """A machine with two pretend cards, for the length of a test."""
    with PretendCards() as machine:
        yield machine
