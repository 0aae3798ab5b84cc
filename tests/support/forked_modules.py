"""What a fork server of the tests imports before it forks."""

import colorsys  # noqa: F401  rarely used, so a test sees whether it is loaded
