"""Plugin tables -> plugins. The only place that knows where built-in plugins live."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from gateway.config import Config, ConfigError, PluginTable, Problem, problems_of
from gateway.plugin import Plugin

BUILT_IN: Final = "plugins"


def built_in_names() -> list[str]:
    """The names `use` takes without a colon."""
    package = importlib.import_module(BUILT_IN)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def load_plugins(config: Config, folder: Path, source: str = "configuration") -> dict[str, Plugin]:
    """One plugin for each enabled table, not started yet.

    Args:
        config: the validated core configuration.
        folder: where `module:Class` is looked for first: the configuration's own folder.
        source: what errors name.

    Raises:
        ConfigError: with everything wrong in all tables.
    """
    problems: list[Problem] = []
    plugins: dict[str, Plugin] = {}
    for name, table in config.plugins.items():
        key = f"plugins.{name}"
        try:
            plugin_class = find(table.use or name, folder)
        except LookupError as error:
            problems.append(Problem(key=f"{key}.use" if table.use else key, expected=str(error.args[0])))
            continue
        found = check_class(plugin_class, table, key)
        problems += found
        try:
            own = plugin_class.Config.model_validate(table.model_extra or {})
        except ValidationError as error:
            problems += problems_of(error, plugin_class.Config, ("plugins", name))
            continue
        if found or not table.enabled:
            continue
        plugin = plugin_class(own, name)
        if table.on_redis_failure is not None:
            plugin.on_redis_failure = table.on_redis_failure
        plugins[name] = plugin
    if problems:
        raise ConfigError(source, problems)
    return plugins


def check_class(plugin_class: type[Plugin], table: PluginTable, key: str) -> list[Problem]:
    """What an author or the table got wrong that would only show with the first request."""
    problems = []
    if not inspect.iscoroutinefunction(plugin_class.__call__):
        problems.append(Problem(key=key, expected=f"{plugin_class.__name__}.__call__ must be `async def`"))
    if inspect.iscoroutinefunction(plugin_class.ask):
        problems.append(
            Problem(
                key=key, expected=f"{plugin_class.__name__}.ask must not be `async`: it queues questions and returns"
            )
        )
    failure = table.on_redis_failure or plugin_class.on_redis_failure
    if failure == "local" and plugin_class.without_redis is Plugin.without_redis:
        problems.append(
            Problem(
                key=f"{key}.on_redis_failure",
                expected="'pass' or 'refuse'",
                found="'local'",
                hint=f"{plugin_class.__name__} has no state of its own to decide from",
            )
        )
    return problems


def find(use: str, folder: Path) -> type[Plugin]:
    """The class that `use` names.

    Raises:
        LookupError: with a text that says which half failed.
    """
    module_name, colon, class_name = use.partition(":")
    if not colon:
        if module_name not in built_in_names():
            close = difflib.get_close_matches(module_name, built_in_names(), n=1)
            known = f"did you mean {close[0]!r}?" if close else f"built in: {', '.join(built_in_names())}"
            raise LookupError(f'no built-in plugin {module_name!r}; {known} (your own: use = "module:Class")')
        return only_plugin_in(importlib.import_module(f"{BUILT_IN}.{module_name}"))
    if not (module_name and class_name):
        raise LookupError(f'{use!r} is not "module:Class"')
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == module_name.partition(".")[0]:
            raise LookupError(f"no module {module_name!r} in {folder} or among the installed packages") from error
        raise LookupError(f"importing {module_name!r} failed: {error}") from error
    except Exception as error:  # an author's module may raise anything
        raise LookupError(f"importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if found is None:
        raise LookupError(f"module {module_name!r} has no class {class_name!r}")
    if not (isinstance(found, type) and issubclass(found, Plugin)):
        raise LookupError(f"{use!r} is not a subclass of gateway.plugin.Plugin")
    return found


def only_plugin_in(module: Any) -> type[Plugin]:
    """The one Plugin subclass a built-in module defines or, for a package, exports."""
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Plugin)
        and value is not Plugin
        and value.__module__.startswith(module.__name__)
    ]
    if len(found) != 1:
        raise LookupError(f"{module.__name__} defines {len(found)} plugins; a built-in module defines one")
    return found[0]
