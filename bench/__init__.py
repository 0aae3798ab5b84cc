"""Herald beside its peers, measured in one run. Not part of what travels to Lambda."""
