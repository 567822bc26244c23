"""Runs that are interrupted: killed, stopped, out of room, started twice."""
