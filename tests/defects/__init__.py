"""Defects of stock Lightning, each next to what does the same job here: so that we notice when upstream mends them."""
