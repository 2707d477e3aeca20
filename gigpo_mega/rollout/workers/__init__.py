"""Processes that play groups for the leader, whose one event loop cannot keep many engines busy."""
