"""How the fuzz tests run: the same inputs every time; a few hundred in the suite, ten thousand with `-m slow`."""

import warnings

import pytest
from hypothesis import HealthCheck, Phase, settings

settings.register_profile("fuzz", derandomize=True, deadline=None, database=None,
                          phases=(Phase.explicit, Phase.generate, Phase.shrink),
                          suppress_health_check=list(HealthCheck))
settings.load_profile("fuzz")


@pytest.fixture(autouse=True)
def quiet():
  """Python warns of odd literals while it parses them; that is no result."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    yield
