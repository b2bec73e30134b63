"""Lightning's own tests of callbacks, run against the classes here that take their place. Not collected by pytest."""
