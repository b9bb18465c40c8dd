"""Units as a sentence says them. A loss of the user's own has none but itself."""

from __future__ import annotations

OWN = "loss"


def behind(unit: str) -> str:
    """What follows a value's name: ", in nats"; nothing for a loss in its own unit."""
    return "" if unit == OWN else f", in {unit}"


def scaled(unit: str) -> str:
    """What follows a power of ten: 10⁻³ nats, 10⁻³ of the loss."""
    return f"of the {OWN}" if unit == OWN else unit
