"""Peers: other ways to send a message to many connections, each as its documentation shows it."""
