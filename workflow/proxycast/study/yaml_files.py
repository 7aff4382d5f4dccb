"""Files of YAML that may be somebody else's: bounded, each key once, and an error that names the file."""

import json
from pathlib import Path

import yaml

from proxycast.config.errors import repeated
from proxycast.options import DEEPEST, InputError, require_regular, told_reason, told_value, unfolded

LONGEST_YAML = 10_000_000  # characters
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, and ten times as fast where it is compiled


class _Loader(YAML_LOADER):
    """PyYAML takes the last of two values with one key; here that is an error."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Looks at the keys before `<<` brings others, which may be overridden."""
        seen = self.__dict__.setdefault("flattened", {})
        if id(node) not in seen:
            seen[id(node)] = node  # held, or its place in memory may become another's
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            there = set()
            for key in keys:
                value = self.construct_object(key)
                if value in there:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {told_value(value)} stands there twice; give it once", key.start_mark
                    )
                there.add(value)
        super().flatten_mapping(node)


def _of_yaml(error: yaml.YAMLError) -> str:
    """What is wrong and where, without quoting the line: a path may lead to a private file."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{(problem or 'a character that YAML does not allow')[:80]}{where}"


def require_keys_once(path: Path) -> None:
    """`InputError` if a key stands twice in a study's file: Snakemake, which reads it, takes the last.

    Like Snakemake it reads a file as JSON if it can.
    """
    if not path.is_file():  # a pipe, which Snakemake has read
        return
    try:
        json.loads(path.read_text(encoding="utf8"), object_pairs_hook=lambda pairs: _once(pairs, path))
    except InputError:
        raise
    except (ValueError, RecursionError):
        read_yaml(path)


def _once(pairs: list[tuple[str, object]], path: Path) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InputError(
            f"{path}: key {told_value(repeated([key for key, _ in pairs]))} stands there twice; give it once"
        )
    return found


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file. `InputError` if the file is absent, broken or no mapping."""
    require_regular(path)
    try:
        text = path.read_text(encoding="utf8")
        _require_bounded(text)
        value = yaml.load(text, Loader=_Loader)
        unfolded(value)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {_of_yaml(error)}") from None
    except (OSError, ValueError, RecursionError, OverflowError, TypeError) as error:  # no UTF-8, a 13th month, too deep
        raise InputError(f"{path}: cannot be read ({told_reason(error)}); give a file of YAML") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: found a {type(value).__name__}, expected a mapping of keys to values")
    return value


def _require_bounded(text: str) -> None:
    """Raise `ValueError` for YAML that is too large, or nested so deeply that reading it fails."""
    if len(text) > LONGEST_YAML:
        raise ValueError(f"found {len(text):,} characters; a file of the configuration has at most {LONGEST_YAML:,}")
    depth = 0
    for event in yaml.parse(text, Loader=YAML_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")
