"""Pure search mathematics: numpy and the standard library only, no I/O, clock, config or device."""
