"""Declared configuration: schema (frozen dataclasses), bridge (ConfigDict at the edge), geometry (derived sizes)."""
