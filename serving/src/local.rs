//! The embedded engine: one thread for each device.
