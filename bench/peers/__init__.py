"""One way each of sending a message to many connections, as its documentation shows it."""
