"""The JSON Schema of the configuration, for editors: with the keys of the built-in plugins."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.config import Config, PluginTable
from gateway.loader import built_in_classes

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def json_schema() -> Schema:
    """What `gateway schema` prints.

    A plugin's table has the keys of the plugin that `use` names, or of the one that has the table's name. Of a
    plugin that is not built in nothing is known, so it may have any key.
    """
    classes = built_in_classes()
    models: list[type[BaseModel]] = [Config, PluginTable, *(plugin.Config for plugin in classes.values())]
    places, document = models_json_schema([(model, "validation") for model in models], title="Gateway configuration")
    definitions: Schema = document["$defs"]

    def definition_of(model: type[BaseModel]) -> Schema:
        schema: Schema = definitions[places[model, "validation"]["$ref"].removeprefix("#/$defs/")]
        return schema

    common = definition_of(PluginTable)
    tables = {}
    for name, plugin in classes.items():
        own = definition_of(plugin.Config)
        # `additionalProperties: false` knows only the properties beside it, so the common ones stand here as well.
        tables[name] = own | {"properties": common["properties"] | own.get("properties", {})}
    definitions |= {f"plugin_{name}": table for name, table in tables.items()}
    config = definition_of(Config)
    config["properties"]["plugins"] = config["properties"]["plugins"] | {
        "properties": {
            name: {"if": {"required": ["use"]}, "then": _by_use(tables), "else": _reference(name)} for name in tables
        },
        "additionalProperties": {"required": ["use"], **_by_use(tables)},
    }
    return {"$schema": DIALECT, **config, "title": "Gateway configuration", "$defs": definitions}


def _by_use(tables: Schema) -> Schema:
    choices = [
        {"if": {"required": ["use"], "properties": {"use": {"const": name}}}, "then": _reference(name)}
        for name in tables
    ]
    return {"type": "object", "allOf": choices}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/$defs/plugin_{name}"}
