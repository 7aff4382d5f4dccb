"""Translates pydantic's errors into one line per key: file, key, what was found, what is expected."""

import difflib
from typing import TypeVar

from pydantic import ValidationError

from proxycast.files import PATTERN_RULES
from proxycast.options import SAFE_NAME, InputError, Options, told_value

Group = TypeVar("Group", bound=Options)


def parse(model: type[Group], values: object, where: str, within: str = "") -> Group:
    """The values as a model; `InputError` with one line for each wrong key. `within`: the key that holds them."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        by_key: dict[tuple, list[dict]] = {}  # the problems of all alternatives that are allowed at a key
        for problem in error.errors():
            if not _is_consequence(problem):
                by_key.setdefault(_path(problem), []).append(problem)
        raise InputError(
            "\n".join(_explain(model, path, found, where, within) for path, found in by_key.items())
        ) from None


def _is_consequence(problem: dict) -> bool:
    """Whether this problem only follows from another one: an alternative or a sequence fails because a part fails."""
    is_mapping, is_list = isinstance(problem["input"], dict), isinstance(problem["input"], list)
    match problem["type"]:
        case "path_type":  # a mapping instead of a file
            return is_mapping
        case "too_short":  # invalid entries are not counted
            return bool(problem["input"])
        case _:  # a list instead of a word
            return is_list and str(problem["loc"][-1:]).startswith('("literal[')


# Parts of pydantic's paths that are not keys: the alternative it tried, or a mark that a key itself is wrong.
NOT_KEYS = ("literal[", "list[", "[key]", "constrained-", "lax-or-strict[", "function-")
MESSAGES = {
    "model_type": "Input should be a mapping of keys to values",
    "path_type": "Input should be a path",
}
RULES = PATTERN_RULES | {SAFE_NAME: "a name must begin with a letter or digit and hold only those and '_', '.', '-'"}


def _path(problem: dict) -> tuple:
    return tuple(part for part in problem["loc"] if not str(part).startswith(NOT_KEYS))


def _explain(model: type[Options], path: tuple, problems: list[dict], where: str, within: str) -> str:
    """One line about the problems at a path of keys."""
    *parents, last = path or ("",)
    key = "".join([within, *(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)]).lstrip(".")
    kind, value = problems[0]["type"], problems[0]["input"]
    if kind == "extra_forbidden":
        known = _keys_at(model, parents)
        return f"{where}: {key}: unknown key{closest(str(last), known)}; known are {', '.join(known)}"
    first, *others = map(_message, problems)
    message = " or ".join([first, *(other.removeprefix("Input should be ") for other in others)])
    found = "" if kind in ("missing", "value_error") else f", found {told_value(value, 200)}"
    return f"{where}: {key}: {message}{found}" if key else f"{where}: {message}"


def _message(problem: dict) -> str:
    rule = RULES.get(problem.get("ctx", {}).get("pattern"))
    return rule or MESSAGES.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")


def _keys_at(model: type[Options], path: list) -> list[str]:
    """The keys that are allowed at `path` within `model`, read from its JSON schema."""
    schema = model.model_json_schema()
    node = schema
    for part in [*path, None]:
        while True:
            options = [o for o in node.get("anyOf", []) if o.get("type") != "null"]
            if "$ref" in node:
                node = schema["$defs"][node["$ref"].split("/")[-1]]
            elif options:
                node = options[-1]
            else:
                break
        if part is not None:
            entries = node.get("patternProperties", {}).values()  # of a mapping whose keys are names
            node = node.get("properties", {}).get(part) or node.get("items") or next(iter(entries), {})
    return list(node.get("properties", {}))


def closest(name: str, known) -> str:
    """A suggestion for a message if a known name is spelled much like `name`, ignoring case."""
    folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def repeated(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)
