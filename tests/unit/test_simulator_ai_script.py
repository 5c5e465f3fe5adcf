from __future__ import annotations

import pytest

from domain.errors import ConfigError
from simulator.ai_script import Behaviour, Script, Step, parse_script


def test_a_script_is_steps_by_provider() -> None:
    assert parse_script("groq=ok*2, rate_limited:30 ;dashscope=hang;") == {
        "groq": [Step(Behaviour.OK), Step(Behaviour.OK), Step(Behaviour.RATE_LIMITED, 30.0)],
        "dashscope": [Step(Behaviour.HANG)],
    }
    assert parse_script("") == {}


@pytest.mark.parametrize(
    "text",
    [
        "grok=ok",
        "groq=nonsense",
        "groq=ok*0",
        "groq=ok*x",
        "groq=ok:-1",
        "groq=ok:inf",
        "groq=ok:y",
    ],
)
def test_what_is_no_script_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="ai script"):
        parse_script(text)


def test_the_last_step_goes_on_and_without_steps_all_is_well() -> None:
    script = Script(parse_script("groq=hang,ok"))
    assert [script.next("groq").behaviour.value for _ in range(4)] == ["hang", "ok", "ok", "ok"]
    assert script.next("openai") == Step(Behaviour.OK)
