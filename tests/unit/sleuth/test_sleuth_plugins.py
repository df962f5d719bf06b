"""What a dotted path names is anybody's code: whatever it does while it is made ends in one line."""

from __future__ import annotations

import pytest

from agent.learning.credit.config import CreditSettings
from envs.config import EnvironmentSettings
from envs.protocols.base import open_protocol
from envs.tools import make_tools
from retrieval.config import RetrieverSettings
from retrieval.encoders.outside import OutsideEncoder, OutsideEncoderSettings
from retrieval.open import open_retriever
from rewards.config import RewardSettings
from sleuth.errors import ConfigError
from sleuth.plugins import make_object

NAME = f"{__name__}:Broken"


class Broken:
    def __init__(self, *_given: object, **_options: object) -> None:
        raise OSError("no licence\nat /etc/licence")


class Refusing:
    def __init__(self) -> None:
        raise ConfigError("the judge has no key", "set KEY")


class Half:
    ready = True

    def search(self) -> None: ...


OPENED = {
    "reward": lambda: RewardSettings.of(kind=NAME).open(),
    "grpo.credit": lambda: CreditSettings.of(kind=NAME).open(),
    "grpo.credit.score": lambda: CreditSettings.of(kind="turns", score=NAME).open(),
    "tool": lambda: make_tools(EnvironmentSettings(tools=["search", NAME]), None),
    "protocol": lambda: open_protocol(EnvironmentSettings(protocol=NAME)),
    "retriever": lambda: open_retriever(RetrieverSettings.of(kind=NAME)),
    "encoder": lambda: OutsideEncoder(OutsideEncoderSettings(kind=NAME)),
}


@pytest.mark.parametrize("what", OPENED)
def test_what_cannot_be_made_is_one_line(what: str) -> None:
    with pytest.raises(ConfigError) as raised:
        OPENED[what]()
    assert raised.value.message == f"{what} {NAME}: no licence"


def test_an_error_that_says_what_to_do_stays_as_it_is() -> None:
    with pytest.raises(ConfigError, match=r"the judge has no key \(set KEY\)"):
        make_object(f"{__name__}:Refusing", "reward")


def test_what_is_missing_is_named() -> None:
    path = f"{__name__}:Half"
    assert make_object(path, "thing", methods=["search"], attributes=["ready"]).ready
    with pytest.raises(ConfigError, match=r"thing .*:Half has no method ready \(look there\)"):
        make_object(path, "thing", methods=["search", "ready"], see="look there")
    with pytest.raises(ConfigError, match=r"thing .*:Half has no 'size'"):
        make_object(path, "thing", attributes=["size"])
