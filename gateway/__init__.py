"""A Redis-aware reverse proxy."""
