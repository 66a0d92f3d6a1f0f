"""What to answer to bytes that are no valid HTTP."""

from __future__ import annotations

from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from gateway.config import Server as ServerTable
from gateway.response import Response, problem


def malformed(error: BaseException | None, begun_with: bytes, table: ServerTable) -> Response:
    """400, 414 or 431, by what the parser complains about.

    Args:
        begun_with: the first piece of the request.
        table: the configuration's `[server]`, with the limits.
    """
    if isinstance(error, LineTooLong):
        line = begun_with.partition(b"\r\n")[0]
        if len(line) > table.max_request_line:
            return problem(414, "URI too long", f"The request target is longer than {table.max_request_line} bytes.")
        return problem(431, "Request header fields too large", f"A header is longer than {table.max_header} bytes.")
    if isinstance(error, HttpProcessingError) and "Too many headers" in error.message:
        return problem(431, "Request header fields too large", f"More than {table.max_headers} header fields.")
    return problem(400, "Bad request", "The request is not valid HTTP.")
