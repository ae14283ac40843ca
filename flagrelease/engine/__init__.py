"""Inference for DeepSeek-V4: the referee that shows what a release computes. `load` is where to start.

| name | what it is for |
|---|---|
| `load` | a release folder -> `Model` |
| `Model` | token ids -> logits, tokens; caches for several sequences |
| `Sampling` | temperature, top-p, seed, length and stops of an answer |
| `Tokenizer` | the release's tokenizer: text -> token ids and back |
| `read_efforts` | a release folder -> `Efforts`: how much its model can be asked to think |
| `encode_messages` | a chat -> `EncodedChat`: the prompt that the model was taught, for `Tokenizer.encode` |
| `parse_completion` | what the model wrote -> `Completion`: content, reasoning, tool calls |
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flagrelease.engine.efforts import read_efforts as read_efforts
    from flagrelease.engine.loader import load as load
    from flagrelease.engine.sampling import Sampling as Sampling
    from flagrelease.engine.text import Tokenizer as Tokenizer
    from flagrelease.engine.v4.model import Model as Model
    from flagrelease.model.chats import encode_messages as encode_messages
    from flagrelease.model.v4.completion import Completion as Completion
    from flagrelease.model.v4.completion import parse_completion as parse_completion

_WHERE = {
    "Completion": "flagrelease.model.v4.completion",
    "Model": "flagrelease.engine.v4.model",
    "Sampling": "flagrelease.engine.sampling",
    "Tokenizer": "flagrelease.engine.text",
    "encode_messages": "flagrelease.model.chats",
    "load": "flagrelease.engine.loader",
    "parse_completion": "flagrelease.model.v4.completion",
    "read_efforts": "flagrelease.engine.efforts",
}
__all__ = [
    "Completion",
    "Model",
    "Sampling",
    "Tokenizer",
    "encode_messages",
    "load",
    "parse_completion",
    "read_efforts",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is used: the command line imports this package and must not load torch for it."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What is public."""
    return list(__all__)
