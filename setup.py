"""How the hot path is translated. All else about the package stands in pyproject.toml.

These modules are plain typed Python. With GATEWAY_COMPILED=1 mypyc makes C extensions of them, for which it needs a C
compiler and Python's headers; without, the same files run as they are. See docs/architecture.md, "Translated".
"""

import os

from setuptools import Extension, setup

HOT = [
    "gateway/heads.py",
    "gateway/observe/__init__.py",
    "gateway/observe/access_log.py",
    "gateway/observe/metrics.py",
    "gateway/remembered.py",
    "gateway/request.py",
    "gateway/response.py",
    "gateway/steps.py",
    "gateway/store/answer.py",
    "gateway/store/asked.py",
    "gateway/store/mirror.py",
    "gateway/store/pipeline.py",
    "gateway/store/prepared.py",
    "gateway/store/redis.py",
    "gateway/wire.py",
    "plugins/cache/answers.py",
    "plugins/cache/entry.py",
    "plugins/cache/generations.py",
    "plugins/cache/keys.py",
    "plugins/cache/policy.py",
    "plugins/cache/target.py",
    "plugins/cache/wanted.py",
    "plugins/rate_limit/limits.py",
    "plugins/rate_limit/who.py",
    "plugins/token_blacklist/tokens.py",
]


def translated() -> list[Extension]:
    """What mypyc makes of them: all in one, so that they call each other as C does."""
    from mypyc.build import mypycify

    return mypycify(HOT, opt_level="2", debug_level="0", group_name="gateway")


setup(ext_modules=translated() if os.environ.get("GATEWAY_COMPILED") == "1" else [])
