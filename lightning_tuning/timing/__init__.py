"""How far a run has come, and how long a duration is in it."""
