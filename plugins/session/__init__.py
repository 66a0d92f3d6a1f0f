"""Sessions that the gateway checks: `[plugins.session]`, `gateway session ...`, and `create_session` for logins."""

from plugins.session.plugin import Session
from plugins.session.sessions import Layout, create_session, create_session_async

__all__ = ["Layout", "Session", "create_session", "create_session_async"]
