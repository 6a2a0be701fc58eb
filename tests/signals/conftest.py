"""The two featurisers, or a skip where their packages are not installed."""

from __future__ import annotations

import pytest

from polyroute.errors import MissingExtraError
from polyroute.protocols import Featuriser
from polyroute.signals import featuriser


def installed(name: str) -> Featuriser:
    try:
        return featuriser(name)
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def static() -> Featuriser:
    return installed("static-1")


@pytest.fixture(scope="session")
def minilm() -> Featuriser:
    return installed("minilm-1")
