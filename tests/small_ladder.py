"""A ladder of a few sizes, for tests that need one."""

from proxycast.config.ladder import Ladder

SHAPE = {"hidden_size": 64, "layers": 1, "heads": 2, "batch_sequences": 4, "learning_rate": 0.01}


def small_ladder(sizes: dict[str, dict], **changes: object) -> Ladder:
    """The ladder of these sizes; each has `SHAPE` but for its own keys."""
    ladder = {"name": "mine", "tokenizer": {"hub": "me/tokenizer"}, "vocabulary": 100, "sequence_length": 8}
    ladder |= {"checkpoint_every": 4, "seeds": {0: "default", 1: "second"}}
    return Ladder(**ladder | {"sizes": {name: SHAPE | size for name, size in sizes.items()}} | changes)
