"""Python runs this by itself in a process that has the folder on its path."""

from tests.rehearsal import rehearsal

rehearsal.begin()
