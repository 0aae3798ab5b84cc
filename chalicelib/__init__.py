"""Herald: who gets a message, how it reaches them, and who is connected."""
