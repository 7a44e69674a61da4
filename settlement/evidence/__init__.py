"""Evidence packs: made by the bridge, verified by anybody offline. Format: docs/reconciliation.md."""
