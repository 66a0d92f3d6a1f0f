"""Plugin tables -> plugins. The only place that knows where built-in plugins live."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from pydantic import ValidationError

from gateway.config import (
    Config,
    ConfigError,
    Overrides,
    PluginTable,
    Problem,
    did_you_mean,
    plugin_tables,
    problems_of,
    read,
    validate,
)
from gateway.plugin import Plugin, PluginConfig

BUILT_IN: Final = "plugins"

# What the core calls, with how: a wrong one is an error at start and not with the first request.
_HOOKS: Final = {
    "ask": "def ask(self, request, redis)",
    "__call__": "async def __call__(self, request, call_next)",
    "without_redis": "async def without_redis(self, request, call_next)",
    "start": "async def start(self, worker)",
    "stop": "async def stop(self)",
}

_read: Final[set[str]] = set()  # users' files that this process has imported from beside a configuration


def built_in_names() -> list[str]:
    """The names `use` takes without a colon."""
    package = importlib.import_module(BUILT_IN)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def built_in_modules() -> dict[str, ModuleType]:
    """The built-in plugins' modules by name."""
    return {name: importlib.import_module(f"{BUILT_IN}.{name}") for name in built_in_names()}


def built_in_parts(part: str) -> dict[str, ModuleType]:
    """The module of this name in each built-in plugin's package that has one, by the plugin's name. It is there for
    operators: workers do without it, and without what it imports. Packages of one's own are not looked at.

    Raises:
        LookupError: such a module has nothing of its own name in it, which is what it is for.
    """
    packages = {name: module for name, module in built_in_modules().items() if hasattr(module, "__path__")}
    parts = {
        name: importlib.import_module(f"{package.__name__}.{part}")
        for name, package in packages.items()
        if any(module.name == part for module in pkgutil.iter_modules(package.__path__))
    }
    for module in parts.values():
        if not hasattr(module, part):
            raise LookupError(
                f"{module.__name__} has no `{part}`: see gateway/console.py, or give the module another name"
            )
    return parts


def built_in_classes() -> dict[str, type[Plugin]]:
    """The built-in plugins by name."""
    return {name: only_plugin_in(module) for name, module in built_in_modules().items()}


def load_all(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Overrides | None = None,
) -> tuple[Config, dict[str, Plugin]]:
    """The configuration (see `gateway.config.load`) and its plugins.

    Raises:
        ConfigError: with everything wrong in the core's tables and the plugins' together.
    """
    draft = read(path, environment=environment, overrides=overrides)
    missing = {problem.key for problem in draft.problems}
    config = validate(draft)
    plugins, problems = make_plugins(plugin_tables(draft), draft.folder)
    draft.problems += [problem for problem in problems if problem.key not in missing]
    draft.fail()
    assert config is not None
    return config, plugins


def load_plugins(config: Config, folder: Path, source: str = "configuration") -> dict[str, Plugin]:
    """One plugin for each enabled table, not started yet.

    Args:
        config: the validated core configuration.
        folder: where `module:Class` is looked for first: the configuration's own folder.
        source: what errors name.

    Raises:
        ConfigError: with everything wrong in all tables.
    """
    plugins, problems = make_plugins(config.plugins, folder)
    if problems:
        raise ConfigError(source, problems)
    return plugins


def make_plugins(tables: Mapping[str, PluginTable], folder: Path) -> tuple[dict[str, Plugin], list[Problem]]:
    """The enabled plugins that are right, and what is wrong with the others."""
    plugins: dict[str, Plugin] = {}
    problems: list[Problem] = []
    for name, table in tables.items():
        key = f"plugins.{name}"
        try:
            plugin_class = find(table.use or name, folder)
        except LookupError as error:
            problems.append(Problem(key=f"{key}.use" if table.use else key, expected=str(error.args[0])))
            continue
        found = check_class(plugin_class, table, key)
        own = None
        if _has_config(plugin_class):
            keys = table.model_extra or {}
            try:
                own = plugin_class.Config.model_validate(keys)
            except ValidationError as error:
                found += problems_of(error, plugin_class.Config, keys, ("plugins", name))
        problems += found
        if found or not table.enabled:
            continue
        try:
            plugin = plugin_class(own, name)
        except Exception as error:  # an author's code may raise anything
            expected = f"{plugin_class.__name__} could not be made: {type(error).__name__}: {error}"
            problems.append(Problem(key=key, expected=expected))
            continue
        if table.on_redis_failure is not None:
            plugin.on_redis_failure = table.on_redis_failure
        plugins[name] = plugin
    return plugins, problems


def check_class(plugin_class: type[Plugin], table: PluginTable, key: str) -> list[Problem]:
    """What an author or the table got wrong that would only show with the first request."""
    problems = []
    class_name = plugin_class.__name__
    for hook, expected in _HOOKS.items():
        method = getattr(plugin_class, hook)
        found = _definition(method)
        if inspect.iscoroutinefunction(method) != expected.startswith("async") or not _takes(
            method, expected.count(",")
        ):
            problems.append(
                Problem(key=key, expected=f"{class_name}.{hook}: expected `{expected}`", found=f"`{found}`")
            )
    if not _has_config(plugin_class):
        expected = f"{class_name}.Config must be a subclass of gateway.plugin.PluginConfig"
        problems.append(Problem(key=key, expected=expected))
    failure = table.on_redis_failure or plugin_class.on_redis_failure
    if failure == "local" and plugin_class.without_redis is Plugin.without_redis:
        hint = f"{class_name} has no state of its own to decide from"
        problems.append(
            Problem(key=f"{key}.on_redis_failure", expected="expected 'pass' or 'refuse'", found="'local'", hint=hint)
        )
    return problems


def find(use: str, folder: Path) -> type[Plugin]:
    """The class that `use` names.

    Raises:
        LookupError: with a text that says which half failed.
    """
    module_name, colon, class_name = use.partition(":")
    if not colon:
        known = built_in_names()
        if module_name not in known:
            hint = did_you_mean(module_name, known, f"built in: {', '.join(known)}")
            raise LookupError(f'no built-in plugin {module_name!r}; {hint} (your own: use = "module:Class")')
        return only_plugin_in(importlib.import_module(f"{BUILT_IN}.{module_name}"))
    if not (module_name and class_name):
        raise LookupError(f'{use!r} is not "module:Class"')
    try:
        module = _import(module_name, folder)
    except ModuleNotFoundError as error:
        if error.name == module_name.partition(".")[0]:
            raise LookupError(f"no module {module_name!r} in {folder} or among the installed packages") from error
        raise LookupError(f"importing {module_name!r} failed: {error}") from error
    except Exception as error:  # an author's module may raise anything
        raise LookupError(f"importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if found is None:
        classes = [name for name, value in vars(module).items() if _is_plugin(value, module)]
        hint = did_you_mean(class_name, classes, f"its plugins: {', '.join(classes) or 'none'}")
        raise LookupError(f"module {module_name!r} has no class {class_name!r}; {hint}")
    if not (isinstance(found, type) and issubclass(found, Plugin)):
        raise LookupError(f"{use!r} is not a subclass of gateway.plugin.Plugin")
    return found


def only_plugin_in(module: ModuleType) -> type[Plugin]:
    """The one Plugin subclass a built-in module defines or, for a package, exports.

    Raises:
        LookupError: it has none, or several.
    """
    found: list[type[Plugin]] = [value for value in vars(module).values() if _is_plugin(value, module)]
    if len(found) != 1:
        raise LookupError(f"{module.__name__} defines {len(found)} plugins; a built-in module defines one")
    return found[0]


def _is_plugin(value: Any, module: ModuleType) -> bool:
    return isinstance(value, type) and issubclass(value, Plugin) and value.__module__.startswith(module.__name__)


def _import(name: str, folder: Path) -> ModuleType:
    """A module, looked for in `folder` first."""
    place = str(folder)
    if place in sys.path:
        sys.path.remove(place)
    sys.path.insert(0, place)
    importlib.invalidate_caches()
    top = name.partition(".")[0]
    here = [path for path in (folder / f"{top}.py", folder / top / "__init__.py") if path.is_file()]
    known = getattr(sys.modules.get(top), "__file__", None)
    if here and known and Path(known) != here[0] and known in _read:
        # Another configuration's module of the same name, read by this process before.
        for loaded in [module for module in sys.modules if module == top or module.startswith(f"{top}.")]:
            del sys.modules[loaded]
    module = importlib.import_module(name)
    if here:
        _read.add(str(here[0]))
    return module


def _has_config(plugin_class: type[Plugin]) -> bool:
    model: Any = plugin_class.Config
    return isinstance(model, type) and issubclass(model, PluginConfig)


def _takes(method: Callable[..., Any], count: int) -> bool:
    """Whether a method can be called with this many arguments besides `self`."""
    try:
        inspect.signature(method).bind(*[None] * (count + 1))
    except TypeError:
        return False
    return True


def _definition(method: Callable[..., Any]) -> str:
    """A method's `def` line without its annotations."""
    signature = inspect.signature(method)
    parameters = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    plain = signature.replace(parameters=parameters, return_annotation=signature.empty)
    return f"{'async ' if inspect.iscoroutinefunction(method) else ''}def {method.__name__}{plain}"
