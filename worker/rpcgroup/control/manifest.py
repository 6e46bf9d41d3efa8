"""From the text of a manifest to an `RPCGroup`, or to a text that says what is wrong with it.

A manifest is YAML with one document. Every fault is one line with the path of the field, what is expected
there and what was found; all faults are told at once.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rpcgroup.control.model import CONTROLLER, DEVICE, DNS_LABEL, RPCGroup
from rpcgroup.control.rules import contradictions
from rpcgroup.errors import ManifestError

__all__ = ["parse_manifest"]


def parse_manifest(text: str) -> RPCGroup:
    """The group of a manifest's text. Raises `ManifestError` with one line for each fault."""
    document = only_document(text)
    try:
        group = RPCGroup.model_validate(document)
    except ValidationError as exc:
        raise ManifestError("\n".join(describe(error) for error in most_telling(exc.errors()))) from exc
    faults = contradictions(group)
    if faults:
        raise ManifestError("\n".join(faults))
    return group


def only_document(text: str) -> Any:
    try:
        documents = [d for d in yaml.safe_load_all(text) if d is not None]
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ManifestError(f"{where}not YAML: {exc.problem or exc.context}") from exc
    except yaml.YAMLError as exc:
        raise ManifestError("not YAML: " + " ".join(str(exc).split())) from exc
    if not documents:
        raise ManifestError("expected an RPCGroup, got an empty file")
    if len(documents) > 1:
        raise ManifestError(f"expected one document with one RPCGroup, got {len(documents)} documents")
    return documents[0]


def most_telling(errors: Sequence[ErrorDetails]) -> Iterable[ErrorDetails]:
    """Of another kind of resource only this is worth saying; its fields are no faults of an RPCGroup."""
    of_another_kind = [e for e in errors if e["type"] == "literal_error"]
    return of_another_kind or errors


def describe(error: ErrorDetails) -> str:
    path = written(error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown field; {suggestion(error['loc'])}"
    return f"{path}: expected {expectation(error)}, got {found(error)}"


def written(location: Sequence[int | str]) -> str:
    """`("spec", "roles", 1, "name")` -> `spec.roles[1].name`."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".") or "the manifest"


def suggestion(location: Sequence[int | str]) -> str:
    known = fields_at(RPCGroup, location[:-1])
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else f"known here: {', '.join(known)}"


def fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Names, as a manifest writes them, of the fields of the model at `location`."""
    for part in location:
        if isinstance(part, str):
            fields = model.model_fields.values()
            annotation = next(f.annotation for f in fields if f.alias == part)
            model = next(inner_models(annotation))
    return [field.alias or name for name, field in model.model_fields.items()]


def inner_models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from inner_models(argument)


EXPECTATIONS = {
    "missing": "a value",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "text (in quotes where YAML reads it as something else)",
    "list_type": "a list",
    "dict_type": "fields with values",
    "model_type": "fields with values",
    "model_attributes_type": "fields with values",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "text",
    "too_short": "at least {min_length} entry",
    "literal_error": "{expected}",
    "too_long": "at most {max_length} entries",
}
PATTERNS = {
    DNS_LABEL: "a DNS label (lower-case letters, digits and -, as in `digits-2`)",
    DEVICE: "cpu or a device with its number (as in `cuda:0`)",
    CONTROLLER: "a domain and a path (as in `kueue.x-k8s.io/multikueue`)",
}


def expectation(error: ErrorDetails) -> str:
    if error["type"] == "string_pattern_mismatch":
        return PATTERNS[error["ctx"]["pattern"]]
    phrase = EXPECTATIONS.get(error["type"])
    return phrase.format(**error.get("ctx", {})) if phrase else error["msg"]


def found(error: ErrorDetails) -> str:
    value = error["input"]
    if error["type"] == "missing" or value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (dict, list)):
        return "an empty list" if value == [] else "a list" if isinstance(value, list) else "fields"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
