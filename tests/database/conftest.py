import pytest
import yaml

from autogemm.database import plain


@pytest.fixture(params=["C", "Python"])
def parser(request, monkeypatch):
    """Both of PyYAML's parsers; the C one is missing from some builds."""
    if request.param == "Python":
        monkeypatch.setattr(plain, "_Parser", yaml.SafeLoader)
