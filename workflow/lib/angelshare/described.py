"""JSON schemas of models whose fields are described by the strings below them.

Pydantic reads such strings itself (`use_attribute_docstrings`), but by parsing the source of every
model whenever it is imported, which each job of a cluster does twice. Here they are read when a
schema is written.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue


def described_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a model and of those in it, every field with its description."""
    return model.model_json_schema(schema_generator=_Described)


class _Described(GenerateJsonSchema):
    def model_schema(self, schema: Any) -> JsonSchemaValue:
        found = super().model_schema(schema)
        model: type[BaseModel] = schema["cls"]
        properties = found.get("properties", {})
        for name, text in field_descriptions(model).items():
            field = model.model_fields.get(name)
            if field is not None and (key := field.alias or name) in properties:
                properties[key].setdefault("description", text)
        return found


def field_descriptions(model: type[BaseModel]) -> dict[str, str]:
    """What stands below the fields of a class and of those it inherits from."""
    texts: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if issubclass(one, BaseModel) and one is not BaseModel:
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
            assert isinstance(body, ast.ClassDef)
            for field, below in pairwise(body.body):
                match field, below:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(text))),
                    ):
                        texts[name] = inspect.cleandoc(text)
    return texts
