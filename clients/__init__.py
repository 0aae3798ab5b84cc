"""Clients of Herald, to be copied: each is one file."""
