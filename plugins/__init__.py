"""The built-in plugins; each uses only what any author may use."""
