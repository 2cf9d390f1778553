"""``docs/report.md``, made from the schema: ``python -m dtp_deploy.report.reference > docs/report.md``."""

import sys
import types
from collections.abc import Iterator
from typing import Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dtp_deploy.report.schema import SCHEMA_VERSION, Report

_INTRODUCTION = f"""# report.json, schema version {SCHEMA_VERSION}

`dtp-deploy compress` writes this file, and `dtp_deploy.report.read_report(path)` reads it. Units are in the names,
accuracy is a fraction (0 to 1), and null means "not known". No host name and no home folder is in it. A change that an
existing reader would stumble over raises `schema_version`. This page is made from the schema:
`python -m dtp_deploy.report.reference > docs/report.md`."""

_PLAIN_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", dict: "object"}


def render_reference() -> str:
    """The page, as Markdown."""
    sections = [_INTRODUCTION]
    for title, model in _models("report", Report):
        rows = [
            f"| `{name}` | {_type_name(info.annotation)} | {_text(info)} |" for name, info in model.model_fields.items()
        ]
        summary = (model.__doc__ or "").split("\n\n")[0]
        sections.append(f"## {title}\n\n{summary}\n\n| field | type | meaning |\n|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(sections) + "\n"


def _models(title: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """A model and those that its fields hold, each once, in reading order."""
    found: dict[type[BaseModel], list[str]] = {}

    def visit(name: str, annotation: object) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.setdefault(annotation, []).append(name)
            if len(found[annotation]) == 1:
                for field, info in annotation.model_fields.items():
                    visit(field, info.annotation)
        else:
            for argument in get_args(annotation):
                visit(name, argument)

    visit(title, model)
    for item, names in found.items():
        yield ", ".join(dict.fromkeys(names)), item


def _type_name(annotation: object) -> str:
    """The type as JSON knows it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return "object"
    if hasattr(annotation, "__metadata__"):
        return _type_name(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object"
    return _PLAIN_NAMES[annotation]  # type: ignore[index]  # a new kind of field shall fail here, in the test


def _text(info: FieldInfo) -> str:
    assert info.description, "every field is described"
    return info.description


if __name__ == "__main__":
    sys.stdout.write(render_reference())
