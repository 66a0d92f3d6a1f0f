"""The configuration: a TOML file, the environment and the command line, read into validated models.

Every error names the key's path, what was expected, what was found, and what to do; all errors come at once.

    values.py    what people write in a value: sizes, times, addresses
    models.py    the tables and their keys
    errors.py    what is wrong, in words, without showing a secret
    reading.py   file, environment and command line -> models
"""

from gateway.config.errors import ConfigError, Problem, did_you_mean, problems_of, redact
from gateway.config.models import (
    Admin,
    Config,
    Log,
    Match,
    MirrorTable,
    PluginTable,
    RedisTable,
    RouteTable,
    Server,
    Table,
    Upstream,
)
from gateway.config.reading import (
    DEFAULTS,
    ENVIRONMENT,
    FILE_NAME,
    Draft,
    Overrides,
    load,
    plugin_tables,
    read,
    read_toml,
    validate,
)
from gateway.config.values import Address, Network, Seconds, Size, parse_size, parse_span

__all__ = [
    "DEFAULTS",
    "ENVIRONMENT",
    "FILE_NAME",
    "Address",
    "Admin",
    "Config",
    "ConfigError",
    "Draft",
    "Log",
    "Match",
    "MirrorTable",
    "Network",
    "Overrides",
    "PluginTable",
    "Problem",
    "RedisTable",
    "RouteTable",
    "Seconds",
    "Server",
    "Size",
    "Table",
    "Upstream",
    "did_you_mean",
    "load",
    "parse_size",
    "parse_span",
    "plugin_tables",
    "problems_of",
    "read",
    "read_toml",
    "redact",
    "validate",
]
