"""The command line ``lightning-tuning``. Only what is imported from here is loaded: pages of help need no torch."""
