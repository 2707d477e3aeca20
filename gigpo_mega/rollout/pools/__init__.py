"""Pools of environments: where they run, and how an event loop steps many of them."""
