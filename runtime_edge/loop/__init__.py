"""Answering images: sources, session, answers."""
