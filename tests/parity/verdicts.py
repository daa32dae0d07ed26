"""What an observation comes to: the one word that stands in the table."""

from __future__ import annotations

from typing import Literal

from tests.parity.observation import Observation

Outcome = Literal["exact", "by ids", "refused", "engine refuses", "caught", "silent"]

OUTCOMES: dict[Outcome, str] = {
    "exact": "the engine makes the contract's prompt, and it was seen to be given to the model",
    "by ids": "nothing proves that the engine makes it; the gateway does, and the model was given those ids",
    "refused": "the contract's template or rules refuse the conversation: the client gets 400, and no engine is asked",
    "engine refuses": "the engine itself refuses the request, and the client gets its error",
    "caught": "nothing proves that the engine makes it, and it takes no ids for such a request: the client gets 409",
    "silent": "the client was served as if all were well, and the model was given another prompt",
}


def outcome_of(observation: Observation) -> Outcome:
    """The outcome for who asks through the gateway."""
    if observation.wanted != "prompt":
        return "refused"
    match observation.mode, observation.served:
        case "", _:
            return "caught"
        case _, "other":
            return "silent"
        case _, "refuses":
            return "engine refuses"
        case "native", "same":
            return "exact"
        case _, "same":
            return "by ids"
    raise AssertionError(f"{observation}: it is not known what it was served")


def is_wrong_alone(observation: Observation) -> bool:
    """Whether the engine by itself, with the same template installed, gives its model another prompt without a word."""
    return observation.alone == "other"


def is_false_alarm(observation: Observation) -> bool:
    """Whether the engine's account differs from the contract, and the prompt that it then makes does not."""
    return observation.said in ("mismatch", "refuses") and observation.alone == "same"
