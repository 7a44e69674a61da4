"""Hardware wallets: an emulated secure element, and the port to an institution's real one."""
