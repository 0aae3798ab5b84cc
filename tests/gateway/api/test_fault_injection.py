"""Faults, switched on and off."""

from gateway.api.fault_injection import NO_FAULT, DeliveryFault, FaultInjection


def test_faults_are_off_at_first_and_belong_to_one_connection() -> None:
    faults = FaultInjection()
    assert faults.handshake_status is None
    faults.deliveries["a"] = DeliveryFault(status=410)
    assert faults.of_delivery("a") == DeliveryFault(delay_ms=0, status=410)
    assert faults.of_delivery("b") == NO_FAULT
