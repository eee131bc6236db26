"""Hypernetwork files: read them safely, write them so that every program accepts them."""
